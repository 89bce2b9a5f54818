"""A folder of images with `metadata.jsonl` (Hugging Face's `imagefolder` convention) as a source."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch import Tensor

from opensiglip.data.example import BrokenExample, Caption, Example, Region, Source
from opensiglip.data.sources.box_layout import BoxLayout, check_layout
from opensiglip.data.sources.files import Files, below
from opensiglip.data.sources.images import blank, read_file, read_image
from opensiglip.data.sources.metadata import MAX_LINE, NOTHING, Row, parse_row
from opensiglip.data.sources.values import resolve_codes, speaks
from opensiglip.errors import EmptySplit, UserError

BROKEN_LINES = 0.1  # a larger share of unusable lines is a mistake in the file, not a few bad rows
HELD_OUT = 50  # one in so many is val where no row names a split

CAPTIONS = pa.list_(
    pa.struct({"text": pa.large_string(), "language": pa.string(), "source": pa.string(), "weight": pa.float64()})
)
PHRASES = pa.list_(pa.struct({"language": pa.string(), "text": pa.large_string()}))
REGION = pa.struct(
    {
        "bbox": pa.list_(pa.float64()),
        "phrases": PHRASES,
        "n_boxes": pa.int32(),
        "names": PHRASES,
        "mask": pa.int32(),
        "score": pa.float64(),
    }
)
SCHEMA = pa.schema(
    {
        "path": pa.string(),
        "file_name": pa.string(),
        "name": pa.string(),
        "group": pa.string(),
        "captions": CAPTIONS,
        "captions_synthetic": CAPTIONS,
        "regions": pa.list_(REGION),
        "extras": pa.large_string(),  # JSON: their shapes differ from folder to folder
    }
)
AT_ONCE = 1000  # rows that are Python objects at one time


class Folder(Source):
    """The rows of one split of a folder, as an Arrow table of `SCHEMA`; images are decoded when asked for.

    Boxes are in pixels of the upright image (EXIF orientation applied, as `datasets` does).
    """

    def __init__(
        self,
        spec: str,
        *,
        split: str = "train",
        languages: Sequence[str] | None = None,
        layout: BoxLayout | None = None,
        folder: str | None = None,
    ) -> None:
        """Read and check all of `metadata.jsonl` in `folder`, by default `spec`; boxes are read in `layout`.

        Rows of one image are one example with all their texts. Raises UserError where the file is missing, broken or
        has no such rows, or where its boxes are of another layout than the one given or assumed.
        """
        self.name = spec
        self.split = split
        self.layout = layout or BoxLayout()
        self.root = root = Path(folder or spec).expanduser().resolve()
        rows, self.skipped = read_rows(root / "metadata.jsonl", layout)
        if layout is None:
            check_layout(sum((row.boxes for row in rows), Counter[str]()), spec)
        splits = split_rows(rows)
        self.splits = {name: len(members) for name, members in splits.items()}
        rows = splits.get(split, [])
        if (wanted := resolve_codes(languages)) is not None:
            check_languages(wanted, [row for members in splits.values() for row in members], spec)
            rows = [row for row in (row.only(wanted) for row in rows) if row.is_usable()]
        if not rows:
            have = ", ".join(f"{count} {name}" for name, count in self.splits.items())
            texts = "" if wanted is None else f" with texts in {', '.join(wanted)}"
            raise EmptySplit(f"{spec} has no row{texts} in split {split!r} (it has {have}); choose another.")
        self.captions, self.phrases = count_captions(rows), count_phrases(rows)
        self.languages = tuple(self.captions or self.phrases)
        self.rows = pa.table(to_columns(root, rows), SCHEMA)

    def __len__(self) -> int:
        return int(self.rows.num_rows)

    def example(self, index: int, language: str | None = None) -> Example:
        """Example `index`. Raises BrokenExample if its image can't be decoded; boxes outside the image are left out."""
        row = self._row(index)
        return self._example(row, read_image(Path(row["path"])), language)

    def without_pixels(self, index: int, height: int, width: int) -> Example:
        return self._example(self._row(index), blank(height, width))

    def _row(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        row: dict[str, Any] = self.rows.slice(index, 1).to_pylist()[0]
        return row

    def _example(self, row: dict[str, Any], image: Tensor, language: str | None = None) -> Example:
        captions = tuple(Caption(**caption) for caption in row["captions"])
        extras = json.loads(row["extras"])
        if "depth" in extras:
            extras["depth"] = below(self.root, extras["depth"])
        if synthetic := tuple(Caption(**caption) for caption in row["captions_synthetic"]):
            extras["captions_synthetic"] = synthetic
        return Example(
            image,
            tuple(caption for caption in captions if caption.language == language) or captions,
            tuple(to_regions(row["regions"], self.layout, image.shape[2], image.shape[1], language)),
            row["name"],
            extras,
            row["group"],
        )

    def encoded(self, index: int) -> bytes:
        return read_file(self.path(index))

    def path(self, index: int) -> Path:
        """The file of an image."""
        return Path(self.rows["path"][index].as_py())

    def group(self, index: int) -> str:
        return str(self.rows["group"][index].as_py())

    def texts(self) -> Iterator[str]:
        """Every caption and phrase of the split, every question, answer and written word, in the file's order."""
        for row in self._each("captions", "regions", "extras"):
            yield from (caption["text"] for caption in row["captions"])
            yield from (phrase["text"] for region in row["regions"] for phrase in region["phrases"])
            extras = json.loads(row["extras"])
            for column, keys in (("qa", ("question", "answer")), ("ocr", ("text",))):
                items = extras.get(column)
                for item in items if isinstance(items, list) else ():
                    yield from (item[key] for key in keys if isinstance(item, dict) and isinstance(item.get(key), str))

    def labels(self) -> list[Any]:
        """The column `label` of each row, None where it has none."""
        return [json.loads(row["extras"]).get("label") for row in self._each("extras")]

    def _each(self, *columns: str) -> Iterator[dict[str, Any]]:
        """Those columns of every row, in the file's order."""
        for batch in self.rows.select(columns).to_batches(max_chunksize=AT_ONCE):
            yield from batch.to_pylist()

    def describe(self) -> dict[str, Any]:
        """Counts of what stands in the split, and what was left out of the file."""
        boxes = [region["n_boxes"] for row in self._each("regions") for region in row["regions"]]
        return {
            "source": self.name,
            "kind": "folder",
            "split": self.split,
            "splits": self.splits,
            "images": len(self),
            "captions": self.captions,
            "phrases": self.phrases,
            "regions": len(boxes),
            "single_box_regions": boxes.count(1),
            "skipped": dict(self.skipped.most_common()),
        }


def read_rows(metadata: Path, layout: BoxLayout | None = None) -> tuple[list[Row], Counter[str]]:
    """The usable rows of the file, one an image, and how many rows, regions and masks are not, by reason."""
    if not metadata.is_file():
        raise UserError(
            f"{metadata.parent} has no metadata.jsonl; write one with one JSON object per line, like "
            '{"file_name": "images/1.jpg", "captions": ["a red apple"]}.'
        )
    rows: dict[tuple[str, str], Row] = {}
    broken, dropped = Counter[str](), Counter[str]()
    files, lines = Files(metadata.parent), 0
    for line in read_lines(metadata):
        lines += 1
        try:
            row = parse_row(line, layout)
            row = replace(row, path=files.find(row.file_name))
        except BrokenExample as reason:
            broken[str(reason)] += 1
        else:
            dropped += row.dropped
            key = row.path, row.alone()
            rows[key] = rows[key].merged(row) if key in rows else row
    if not lines:
        raise UserError(f"{metadata} is empty; give it one JSON object per line.")
    if broken[NOTHING] == lines:
        raise UserError(
            f"{metadata} has no column 'captions', 'caption', 'text', 'regions', 'objects', 'label' or 'qa' with "
            "anything in it; add one."
        )
    if broken.total() > BROKEN_LINES * lines:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in broken.most_common(3))
        raise UserError(f"{broken.total()} of {lines} lines of {metadata} can't be used ({reasons}); fix the file.")
    return list(rows.values()), broken + dropped


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines that are not blank; one that is too long comes cut, just long enough to be seen as too long.

    Raises UserError for UTF-16.
    """
    with path.open("rb") as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise UserError(f"{path} is UTF-16, as PowerShell writes it; save it as UTF-8.")
        file.seek(0)
        while line := file.readline(MAX_LINE + 1):
            if line.strip():
                yield line
            while len(line) > MAX_LINE and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE + 1)


def split_rows(rows: list[Row]) -> dict[str, list[Row]]:
    """The rows by split. Where no row names one, a hash of the file name holds out one in fifty as val, for ever."""
    named = any(row.split for row in rows)
    held_out = {row.path: row.split for row in rows if row.split in ("val", "test")}
    splits: dict[str, list[Row]] = {}
    for row in rows:
        digest = hashlib.blake2b(row.file_name.encode(), digest_size=8).digest()
        drawn = "val" if not named and int.from_bytes(digest) % HELD_OUT == 0 else "train"
        # An image that any row holds out never trains, whatever its other rows say.
        splits.setdefault(held_out.get(row.path) or row.split or drawn, []).append(row)
    return splits


def check_languages(languages: Sequence[str], rows: list[Row], spec: str) -> None:
    have = dict.fromkeys([*count_captions(rows), *count_phrases(rows)])
    if missing := [code for code in languages if not any(speaks(one, [code]) for one in have)]:
        raise UserError(f"{spec} has no texts in {', '.join(missing)}; its languages are {', '.join(have)}.")


def count_captions(rows: list[Row]) -> dict[str, int]:
    """Captions per language, the most frequent first."""
    return dict(Counter(caption.language for row in rows for caption in row.captions).most_common())


def count_phrases(rows: list[Row]) -> dict[str, int]:
    """Phrases per language, the most frequent first."""
    return dict(Counter(code for row in rows for region in row.regions for code in region.phrases).most_common())


def to_columns(root: Path, rows: list[Row]) -> dict[str, list[Any]]:
    groups: dict[str, str] = {}  # rows of one file are one image, whatever else they say
    for row in rows:
        groups.setdefault(row.path, row.path if row.image_id is None else f": {row.image_id}")
    return {
        "path": [str(root / row.path) for row in rows],
        "file_name": [row.file_name for row in rows],
        "name": [row.key or row.file_name for row in rows],
        "group": [f"{root}/{groups[row.path]}" for row in rows],
        "captions": [[vars(caption) for caption in row.captions] for row in rows],
        "captions_synthetic": [[vars(caption) for caption in row.synthetic] for row in rows],
        "regions": [[from_region(region) for region in row.regions] for row in rows],
        "extras": [json.dumps(row.extras) for row in rows],
    }


def from_region(region: Region) -> dict[str, Any]:
    spoken = {
        column: [{"language": code, "text": text} for code, text in texts.items()]
        for column, texts in (("phrases", region.phrases), ("names", region.names))
    }
    return {"bbox": region.bbox, **spoken, "n_boxes": region.n_boxes, "mask": region.mask, "score": region.score}


def to_regions(
    columns: list[dict[str, Any]], layout: BoxLayout, width: int, height: int, language: str | None
) -> Iterator[Region]:
    """The regions whose box lies in the decoded image, each with its phrase in `language` where it has one."""
    for column in columns:
        phrases, names = (
            {phrase["language"]: phrase["text"] for phrase in column[spoken]} for spoken in ("phrases", "names")
        )
        if language is not None and language in phrases:
            phrases = {language: phrases[language]}
        try:
            box = layout.fit(column["bbox"], width, height)
        except BrokenExample:
            continue
        yield Region(box, phrases, column["n_boxes"], names, column["mask"], column["score"])
