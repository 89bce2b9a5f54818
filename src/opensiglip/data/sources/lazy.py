"""A source whose rows are read and checked when they are asked for, so that opening it reads no more than a few."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from opensiglip.data.example import BrokenExample, Example, Region, Source
from opensiglip.data.sources.box_layout import BoxLayout
from opensiglip.data.sources.files import below
from opensiglip.data.sources.images import blank, decode_image_bytes, from_pil, read_file, read_image
from opensiglip.data.sources.metadata import Row, parse_record
from opensiglip.data.sources.recent import Recent
from opensiglip.data.sources.spec import Spec
from opensiglip.data.sources.split import Part, Rows
from opensiglip.data.sources.values import resolve_codes
from opensiglip.errors import EmptySplit, UserError

SAMPLE = 64  # rows read at the start, for the languages and to see whether anything can be read
TEXT_ROWS = 100_000  # rows whose texts a tokenizer is trained on

Encoded = bytes | Path | Image.Image | Tensor  # an image: a file's bytes, a file, or pixels


class LazySource(Source):
    """Rows by number, each checked as a line of `metadata.jsonl` is. One that can't be used costs only itself.

    A kind of data gives `columns` and `image` of a row, and may give `key`.
    """

    kind: str
    alone = False  # are images without any text or class what the source has?
    root: Path  # what names of files in its columns are relative to
    fixed_layout: BoxLayout | None = None  # of the boxes, where the kind of data says it

    def __init__(
        self, spec: Spec, split: str, languages: Sequence[str] | None, rows: Rows, classes: Sequence[str] = ()
    ) -> None:
        """Raises UserError where the split is empty, or none of the rows tried can be used."""
        self.name, self.split, self.rows = spec.name, split, rows
        self.layout, self.classes = self.fixed_layout or spec.layout, read_classes(spec) or list(classes)
        if not len(rows):
            raise EmptySplit(f"{spec.name} has no row in split {split!r}; choose another, or give it more rows.")
        self.wanted = resolve_codes(languages)
        self.skipped = Counter[str]()
        self.found = Counter[str]()  # captions per language in the rows tried
        self.with_image_ids = False
        self.checked = Recent(self._check, 1)  # a row's group is asked for with the row
        self._try_rows()
        self.languages = tuple(code for code, _ in self.found.most_common())

    def __len__(self) -> int:
        return len(self.rows)

    @abstractmethod
    def columns(self, row: int) -> dict[str, Any]:
        """What is known of a row but its image, as a line of metadata.jsonl says it. Raises BrokenExample."""

    @abstractmethod
    def image(self, row: int) -> Encoded:
        """The image of a row. Raises BrokenExample."""

    def key(self, row: int) -> str:
        """What a row is called in pages and messages."""
        return str(row)

    def example(self, index: int, language: str | None = None) -> Example:
        """Example `index`. Raises BrokenExample for a row that can't be used; boxes outside the image are left out."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        row = self.rows.row(index)
        checked = self.checked[row]
        return self._example(index, checked, decode(self.image(row)), language)

    def without_pixels(self, index: int, height: int, width: int) -> Example:
        return self._example(index, self.checked[self.rows.row(index)], blank(height, width))

    def _example(self, index: int, checked: Row, pixels: Tensor, language: str | None = None) -> Example:
        extras = dict(checked.extras)
        if "depth" in extras:
            extras["depth"] = below(self.root.resolve(), extras["depth"])
        if checked.synthetic:
            extras["captions_synthetic"] = checked.synthetic
        captions = tuple(caption for caption in checked.captions if caption.language == language) or checked.captions
        regions = tuple(regions_in(checked.regions, self.layout or BoxLayout(), pixels, language))
        name = checked.key or self.key(self.rows.row(index))
        return Example(pixels, captions, regions, name, extras, self.group(index))

    def encoded(self, index: int) -> bytes | None:
        image = self.image(self.rows.row(index))
        if isinstance(image, Path):
            return read_file(image)
        return image if isinstance(image, bytes) else None

    def group(self, index: int) -> str:
        """By `image_id` where the rows tried at the start have one: then the row's text is read."""
        if self.with_image_ids:
            try:
                image_id = self.checked[self.rows.row(index)].image_id
            except BrokenExample:
                image_id = None
            if image_id is not None:
                return f"{self.root}/: {image_id}"
        return super().group(index)

    def texts(self) -> Iterator[str]:
        """Captions and phrases of up to 100,000 rows, evenly spread."""
        count = min(len(self), TEXT_ROWS)
        for number in range(count):
            try:
                checked = self.checked[self.rows.row(number * len(self) // count)]
            except BrokenExample:
                continue
            yield from (caption.text for caption in checked.captions)
            yield from (phrase for region in checked.regions for phrase in region.phrases.values())

    def describe(self) -> dict[str, Any]:
        """Counts, and what the rows tried at the start show."""
        shards = {} if self.shards is None else {"shards": len(self.shards)}
        tried, held_out = min(SAMPLE, len(self)), isinstance(self.rows, Part) and self.rows.part == "train"
        return {
            "source": self.name,
            "kind": self.kind,
            "split": self.split + (", all but every fiftieth row (val: no file is named so)" if held_out else ""),
            "images": len(self),
            **shards,
            **self.facts(),
            f"captions_in_{tried}_rows": dict(self.found.most_common()),
            "skipped": dict(self.skipped.most_common()),
        }

    def facts(self) -> dict[str, Any]:
        """What this kind of data says of itself."""
        return {}

    def _check(self, row: int) -> Row:
        """What a row says, every rule of metadata.jsonl applied. Raises BrokenExample."""
        columns = self.columns(row)
        if self.classes and "label" in columns:
            columns = columns | {"label": self._class(columns["label"])}
        checked = parse_record(columns, self.key(row), self.layout, alone=self.alone)
        return checked if self.wanted is None else checked.only(self.wanted)

    def _class(self, label: Any) -> str:
        try:
            number = int(label)
        except (TypeError, ValueError):
            raise BrokenExample("label is not the number of a class") from None
        if not 0 <= number < len(self.classes):
            raise BrokenExample("label is not the number of a class")
        return self.classes[number]

    def _try_rows(self) -> None:
        """Read a few rows, from the beginning and four places on, and count languages and reasons."""
        tried = min(SAMPLE, len(self))
        broken = Counter[str]()
        for number in range(tried):
            part, along = divmod(number, -(-tried // 4))
            index = min(part * len(self) // 4 + along, len(self) - 1)
            try:
                checked = self.checked[self.rows.row(index)]
            except BrokenExample as reason:
                broken[str(reason)] += 1
                continue
            self.with_image_ids |= checked.image_id is not None
            codes = [caption.language for caption in checked.captions]
            codes += [code for region in checked.regions for code in region.phrases] if not codes else []
            self.found.update(codes)
        if broken.total() == tried:
            reasons = ", ".join(f"{reason}: {count}" for reason, count in broken.most_common(3))
            raise UserError(f"none of {tried} rows of {self.name} can be used ({reasons}); fix it or its options.")
        if self.wanted is not None and not self.found:
            raise UserError(f"{self.name} has no texts in {', '.join(self.wanted)} in the first {tried} rows tried.")


def decode(image: Encoded) -> Tensor:
    """Pixels [3, H, W] uint8, upright. Raises BrokenExample."""
    if isinstance(image, bytes):
        return decode_image_bytes(image)
    if isinstance(image, Path):
        return read_image(image)
    if isinstance(image, Image.Image):
        return from_pil(image)
    return image


def regions_in(regions: Sequence[Region], layout: BoxLayout, pixels: Tensor, language: str | None) -> Iterator[Region]:
    """The regions whose box lies in the image, each with its phrase in `language` where it has one."""
    for region in regions:
        phrases = region.phrases
        if language is not None and language in phrases:
            phrases = {language: phrases[language]}
        try:
            yield replace(region, bbox=layout.fit(region.bbox, pixels.shape[2], pixels.shape[1]), phrases=phrases)
        except BrokenExample:
            continue


def read_classes(spec: Spec) -> list[str]:
    """The names of classes by number. Raises UserError where the file can't be read."""
    file = spec.options.get("classes")
    if file is None:
        return []
    try:
        return Path(file).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(
            f"--data {spec.name}: classes file {file} can't be read ({error}); give one name per line."
        ) from None
