"""One line of `metadata.jsonl`, checked: everything in it is somebody else's, so nothing is taken on trust."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from opensiglip.data.example import BrokenExample, Caption, Region
from opensiglip.data.sources.box_layout import BoxLayout, box_facts
from opensiglip.data.sources.files import parse_file_name
from opensiglip.data.sources.regions import parse_masks, parse_objects, parse_regions, unmasked
from opensiglip.data.sources.values import (
    MAX_COUNT,
    check_nested,
    checked_text,
    is_number,
    negative_captions,
    parse_language,
    parse_list,
    parse_texts,
    speaks,
)

NOTHING = "no caption, region, label or answer"
MAX_LINE = 4_000_000  # bytes; a photo's row is some thousands

# Optional columns that are handed on unread; their meaning is the affair of whoever asks for them.
EXTRAS = ("label", "groups", "qa", "ocr", "masks", "depth", "geometry", "negative_caption", "image_id")
LISTS = ("qa", "ocr", "masks")  # those of which an image has several, whatever row they stand in
ABOUT = {"geometry", "image_id"}  # those that say how an image was made, or which it is: nothing to learn
SPLITS = dict.fromkeys(("train", "training", "restval"), "train")  # COCO's captions: what val leaves to train
SPLITS |= dict.fromkeys(("val", "valid", "validation", "dev"), "val") | dict.fromkeys(("test", "testing"), "test")


@dataclass(frozen=True)
class Row:
    """What one line says; `dropped` counts, by reason, the regions and masks it lost."""

    file_name: str  # relative, with "/", normalised
    captions: tuple[Caption, ...]
    synthetic: tuple[Caption, ...]
    regions: tuple[Region, ...]
    split: str | None  # "train", "val", "test", or None where the line names none
    extras: dict[str, Any]
    dropped: Counter[str]
    boxes: Counter[str]  # what `box_facts` says of them
    path: str = ""  # of the image below the folder, as the disk spells it
    key: str = ""  # what the example is called, where that is not its file's name

    def is_usable(self) -> bool:
        """Is there anything to learn or measure?"""
        return bool(self.captions or self.regions or self.synthetic or self.extras.keys() - ABOUT)

    @property
    def image_id(self) -> str | float | None:
        """What the column names the image by, so that other files and rows can show the same one."""
        return self.extras.get("image_id")

    def alone(self) -> str:
        """What must be the same in rows of one image for them to be one example: all that an example has once."""
        once = {column: value for column, value in self.extras.items() if column not in LISTS}
        return json.dumps(once, sort_keys=True)

    def merged(self, other: "Row") -> "Row":
        """This row with the texts, regions and lists of another row of its image, each once."""
        lists = {column: [*self._list(column), *other._list(column)] for column in LISTS}
        return replace(
            self,
            captions=tuple(dict.fromkeys(self.captions + other.captions)),
            synthetic=tuple(dict.fromkeys(self.synthetic + other.synthetic)),
            regions=self.regions + tuple(region for region in self._moved(other) if region not in self.regions),
            split=other.split if other.split in ("val", "test") else self.split or other.split,
            extras=self.extras | {column: value for column, value in lists.items() if value},
            boxes=self.boxes + other.boxes,
        )

    def _moved(self, other: "Row") -> Iterator[Region]:
        """The regions of another row; their masks come after this row's."""
        first = len(self._list("masks"))
        yield from (r if r.mask is None else replace(r, mask=r.mask + first) for r in other.regions)

    def _list(self, column: str) -> list[Any]:
        value = self.extras.get(column, [])
        return value if isinstance(value, list) else [value]

    def only(self, languages: Sequence[str]) -> "Row":
        """The row with the texts in these languages, and the regions that still have a phrase."""
        regions = (
            replace(region, phrases={code: text for code, text in region.phrases.items() if speaks(code, languages)})
            for region in self.regions
        )
        return replace(
            self,
            captions=tuple(caption for caption in self.captions if speaks(caption.language, languages)),
            synthetic=tuple(caption for caption in self.synthetic if speaks(caption.language, languages)),
            regions=tuple(region for region in regions if region.phrases),
        )


def parse_row(line: bytes, layout: BoxLayout | None = None) -> Row:
    """The row a line of JSON holds; boxes are read in `layout`, by default corners in pixels.

    Raises BrokenExample, with the reason, for a line that can't be used.
    """
    if len(line) > MAX_LINE:
        raise BrokenExample(f"line over {MAX_LINE // 1_000_000} MB")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # not JSON, not UTF-8, a number of thousands of digits, nested too deep
        raise BrokenExample("line is not JSON") from None
    if not isinstance(row, dict):
        raise BrokenExample("line is not a JSON object")
    return parse_record(row, parse_file_name(row.get("file_name")), layout)


def parse_record(row: dict[str, Any], file_name: str, layout: BoxLayout | None = None, *, alone: bool = False) -> Row:
    """The row that a line or another record of the same columns holds, of the image of this name.

    `alone`: an image without anything to learn from is a row too. Raises BrokenExample, with the reason.
    """
    # pandas writes NaN where nothing is
    row = {column: value for column, value in row.items() if not (isinstance(value, float) and value != value)}
    language = parse_language(row.get("lang") or "en")
    size = parse_size(row)
    regions, dropped = parse_regions(row, language, size, layout or BoxLayout())
    objects, lost = parse_objects(row, language, size, layout or BoxLayout("xywh"))
    extras = parse_extras(row)
    lost_masks = False
    if "masks" in extras:
        masks, spoilt = parse_masks(extras.pop("masks"))
        lost += spoilt
        lost_masks = bool(spoilt)
        if masks:
            extras["masks"] = masks
    parsed = Row(
        file_name,
        parse_captions(row, language),
        parse_synthetic(row, language),
        unmasked(regions + objects) if "masks" in row and lost_masks else regions + objects,
        parse_split(row.get("split")),
        extras,
        dropped + lost,
        facts_of(row),
        key=checked_text(row["key"]) if isinstance(row.get("key"), str) else "",
    )
    if not alone and not parsed.is_usable():
        raise BrokenExample(NOTHING)
    return parsed


def parse_split(value: Any) -> str | None:
    if value is None or value == "":
        return None
    split = SPLITS.get(value.strip().lower()) if isinstance(value, str) else None
    if split is None:
        raise BrokenExample("split is not train, val or test")
    return split


def parse_size(row: dict[str, Any]) -> tuple[float, float] | None:
    """(width, height) in pixels, or None where the row does not give both."""
    width, height = row.get("width"), row.get("height")
    for side in (width, height):
        if side is not None and not (is_number(side) and 1 <= side <= MAX_COUNT):
            raise BrokenExample("width or height is not a positive number")
    return None if width is None or height is None else (width, height)


def parse_captions(row: dict[str, Any], language: str) -> tuple[Caption, ...]:
    """The captions of every caption column, each once, in the row's order. Synthetic ones are extras.

    `captions_i18n` knows a text's language and source: what it repeats with others of them than the row's is its own.
    """
    captions = [Caption(text, language) for text in parse_texts(row, "captions")]
    for column in ("caption", "text"):
        text = row.get(column)
        if text is not None and not isinstance(text, str):
            raise BrokenExample(f"{column} is not a string")
        captions.append(Caption(checked_text(text or ""), language))
    known = [parse_caption(item, "captions_i18n") for item in parse_list(row, "captions_i18n")]
    others = {caption.text for caption in known} - {one.text for one in known if one in captions}
    kept = [*(caption for caption in captions if caption.text not in others), *known]
    return tuple(dict.fromkeys(caption for caption in kept if caption.text))


def parse_caption(item: Any, column: str) -> Caption:
    """A text with its language and source. Raises BrokenExample."""
    source = (item.get("source") or "human") if isinstance(item, dict) else None
    if not isinstance(item, dict) or not isinstance(item.get("text"), str) or not isinstance(source, str):
        raise BrokenExample(f"{column} is not a list of {{lang, text, source}}")
    weight = item.get("weight", 1.0)
    if not is_number(weight) or not 0 < weight <= MAX_COUNT:
        raise BrokenExample(f"weight in {column} is not a positive number")
    return Caption(checked_text(item["text"]), parse_language(item.get("lang")), checked_text(source), float(weight))


def parse_synthetic(row: dict[str, Any], language: str) -> tuple[Caption, ...]:
    """The column `captions_synthetic`: texts in the row's language, or {lang, text, source}."""
    items = parse_list(row, "captions_synthetic")
    if any(isinstance(item, dict) for item in items):
        captions = [parse_caption(item, "captions_synthetic") for item in items]
    else:
        captions = [Caption(text, language, "synthetic") for text in parse_texts(row, "captions_synthetic")]
    return tuple(caption for caption in captions if caption.text)


def parse_extras(row: dict[str, Any]) -> dict[str, Any]:
    """The optional columns the row has, as JSON gave them, but for `negative_caption`: a list of texts."""
    extras = {column: row[column] for column in EXTRAS if row.get(column) is not None}
    check_nested(extras)
    if "depth" in extras:
        parse_file_name(extras["depth"])
    image_id = extras.get("image_id", 0)
    if not is_number(image_id) and not (isinstance(image_id, str) and image_id.strip()):
        raise BrokenExample("image_id is neither a text nor a number")
    if "negative_caption" in extras and (texts := negative_captions(extras.pop("negative_caption"))):
        extras["negative_caption"] = texts
    return extras


def facts_of(row: dict[str, Any]) -> Counter[str]:
    """What the row's boxes look like."""
    if row.get("regions") is None and row.get("objects") is None:
        return Counter()
    regions = [item.get("bbox") for item in parse_list(row, "regions") if isinstance(item, dict)]
    objects = row.get("objects")
    others = objects.get("bbox") if isinstance(objects, dict) else None
    return box_facts(regions, corners=True) + box_facts(others if isinstance(others, list) else [], corners=False)
