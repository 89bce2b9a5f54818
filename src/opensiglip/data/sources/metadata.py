"""One line of `metadata.jsonl`, checked: everything in it is somebody else's, so nothing is taken on trust."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from opensiglip.data.example import BrokenExample, Caption, Region
from opensiglip.data.sources.box_layout import BoxLayout, box_facts
from opensiglip.data.sources.files import parse_file_name
from opensiglip.data.sources.values import (
    check_nested,
    checked_text,
    is_number,
    negative_captions,
    parse_language,
    speaks,
)

NOTHING = "no caption, region, label or answer"
MAX_LINE = 4_000_000  # bytes; a photo's row is some thousands
MAX_COUNT = 1_000_000  # of an image's pixels along a side, of a phrase's boxes
MAX_CORNERS = 2000  # of one outline: to simplify it takes time with their square

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


def parse_masks(masks: Any) -> tuple[list[Any], Counter[str]]:
    """The masks whose outlines are numbers, not too many; and why the others can't be used."""
    kept, dropped = [], Counter[str]()
    for mask in masks if isinstance(masks, list) else [masks]:
        polygons = mask.get("polygons") if isinstance(mask, dict) else None
        if not isinstance(polygons, list) or not all(map(_is_outline, polygons)):
            dropped["mask: not {label, polygons} with x1, y1, x2, y2, x3, y3, ... in each"] += 1
        elif any(len(corners) > 2 * MAX_CORNERS for corners in polygons):
            dropped[f"mask: over {MAX_CORNERS:,} corners"] += 1
        else:
            kept.append(mask)
    return kept, dropped


def _is_outline(value: Any) -> bool:
    return isinstance(value, list) and len(value) >= 6 and len(value) % 2 == 0 and all(map(is_number, value))


def facts_of(row: dict[str, Any]) -> Counter[str]:
    """What the row's boxes look like."""
    if row.get("regions") is None and row.get("objects") is None:
        return Counter()
    regions = [item.get("bbox") for item in parse_list(row, "regions") if isinstance(item, dict)]
    objects = row.get("objects")
    others = objects.get("bbox") if isinstance(objects, dict) else None
    return box_facts(regions, corners=True) + box_facts(others if isinstance(others, list) else [], corners=False)


Size = tuple[float, float] | None


def parse_regions(
    row: dict[str, Any], language: str, size: Size, layout: BoxLayout
) -> tuple[tuple[Region, ...], Counter[str]]:
    """The regions that can be used, and why the others can't. Boxes are checked against `size` where it is known."""
    return _usable(parse_list(row, "regions"), lambda item: parse_region(item, language, size, layout))


def parse_objects(
    row: dict[str, Any], language: str, size: Size, layout: BoxLayout
) -> tuple[tuple[Region, ...], Counter[str]]:
    """The regions of imagefolder's own column, {"bbox": [[x, y, width, height], ...], "categories": [name, ...]}."""
    given = row.get("objects")
    if given is None:
        return (), Counter()
    boxes, names = (given.get("bbox"), given.get("categories")) if isinstance(given, dict) else (None, None)
    if not isinstance(boxes, list) or not isinstance(names, list) or len(boxes) != len(names):
        raise BrokenExample("objects is not {bbox, categories}, lists of one length")
    counts = Counter(name for name in names if isinstance(name, str))

    def parse(item: tuple[Any, Any]) -> Region:
        box, name = item
        if not isinstance(name, str):
            raise BrokenExample("category is not a name")
        return parse_region({"bbox": box, "phrase": name, "n_boxes": counts[name]}, language, size, layout)

    return _usable(list(zip(boxes, names, strict=True)), parse)


def _usable(items: list[Any], parse: Callable[[Any], Region]) -> tuple[tuple[Region, ...], Counter[str]]:
    regions, dropped = [], Counter[str]()
    for item in items:
        try:
            regions.append(parse(item))
        except BrokenExample as reason:
            dropped[f"region: {reason}"] += 1
    return tuple(regions), dropped


def parse_region(item: Any, language: str, size: Size, layout: BoxLayout) -> Region:
    """One region; its box in the layout's unit, checked against the size where that is known."""
    if not isinstance(item, dict):
        raise BrokenExample("not an object")
    box = layout.read(item.get("bbox"))
    n_boxes = item.get("n_boxes", 1)
    if not is_number(n_boxes) or n_boxes != int(n_boxes) or not 1 <= n_boxes <= MAX_COUNT:
        raise BrokenExample("n_boxes is not a positive whole number")
    given = item.get("phrases") or {}
    if not isinstance(given, dict):
        raise BrokenExample("phrases is not an object")
    phrases = {language: item.get("phrase")} | {parse_language(code): phrase for code, phrase in given.items()}
    if not all(phrase is None or isinstance(phrase, str) for phrase in phrases.values()):
        raise BrokenExample("phrase is not a string")
    texts = {code: text for code, phrase in phrases.items() if (text := checked_text(phrase or ""))}
    if not texts:
        raise BrokenExample("no phrase")
    if size is not None:
        fitted = layout.fit(box, *size)
        box = box if layout.relative else fitted  # shares become pixels once the image is read
    return Region(box, texts, int(n_boxes), parse_names(item), parse_mask(item), parse_score(item))


def parse_names(item: dict[str, Any]) -> dict[str, str]:
    """What kind of thing a region is, by language."""
    names = item.get("names") or {}
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise BrokenExample("names is not an object of texts")
    return {parse_language(code): text for code, name in names.items() if (text := checked_text(name))}


def parse_mask(item: dict[str, Any]) -> int | None:
    """A region's place in the row's masks."""
    mask = item.get("mask")
    if mask is not None and not (isinstance(mask, int) and not isinstance(mask, bool) and 0 <= mask < MAX_COUNT):
        raise BrokenExample("mask is not the number of a mask")
    return mask


def parse_score(item: dict[str, Any]) -> float | None:
    """How sure a detector was, 0 to 1."""
    score = item.get("score")
    if score is not None and not (is_number(score) and 0 <= score <= 1):
        raise BrokenExample("score is not a number from 0 to 1")
    return None if score is None else float(score)


def unmasked(regions: tuple[Region, ...]) -> tuple[Region, ...]:
    """The regions without their masks' places, which no longer hold where a mask was left out."""
    return tuple(replace(region, mask=None) for region in regions)


def parse_list(row: dict[str, Any], column: str) -> list[Any]:
    value = row.get(column)
    if value is not None and not isinstance(value, list):
        raise BrokenExample(f"{column} is not a list")
    return value or []


def parse_texts(row: dict[str, Any], column: str) -> list[str]:
    texts = parse_list(row, column)
    if not all(isinstance(text, str) for text in texts):
        raise BrokenExample(f"{column} is not a list of strings")
    return [checked_text(text) for text in texts]
