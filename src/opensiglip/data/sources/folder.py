"""A folder of images with `metadata.jsonl` (Hugging Face's `imagefolder` convention) as a source."""

import hashlib
import io
import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageColumn
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.io import decode_image
from torchvision.transforms.v2 import functional

from opensiglip.data.example import BrokenExample, Caption, Example, Region, Source
from opensiglip.data.sources.metadata import MAX_LINE, NO_TEXT, Row, fit_box, parse_file_name, parse_row
from opensiglip.errors import UserError

MAX_PIXELS = 64_000_000
MAX_BYTES = 4 * MAX_PIXELS  # a file bigger than its pixels holds something else
BROKEN_LINES = 0.1  # a larger share of unusable lines is a mistake in the file, not a few bad rows
HELD_OUT = 50  # one in so many is val where no row names a split
# What PIL may open: its other formats are rare here, and some start programs or unpack without bound.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")

CAPTIONS = List({"text": Value("large_string"), "language": Value("string"), "source": Value("string")})
PHRASES = List({"language": Value("string"), "text": Value("large_string")})
COLUMNS = Features(
    {
        "image": ImageColumn(decode=False),
        "file_name": Value("string"),
        "captions": CAPTIONS,
        "captions_synthetic": CAPTIONS,
        "regions": List({"bbox": List(Value("float64")), "phrases": PHRASES, "n_boxes": Value("int32")}),
        "extras": Value("large_string"),  # JSON: their shapes differ from folder to folder
    }
)


class Folder(Source):
    """The rows of one split of a folder, as a `datasets.Dataset` of undecoded images; decoded when asked for.

    Boxes are in pixels of the upright image (EXIF orientation applied, as `datasets` does).
    """

    def __init__(self, spec: str, *, split: str = "train", languages: Sequence[str] | None = None) -> None:
        """Read and check all of `metadata.jsonl`. Raises UserError where it is missing, broken or has no such rows."""
        self.name = spec
        self.split = split
        self.root = root = Path(spec).expanduser().resolve()
        rows, self.skipped = read_rows(root / "metadata.jsonl")
        splits = split_rows(rows)
        self.splits = {name: len(members) for name, members in splits.items()}
        rows = splits.get(split, [])
        if languages is not None and list(languages) != ["all"]:
            check_languages(languages, [row for members in splits.values() for row in members], spec)
            rows = [row for row in (row.only(languages) for row in rows) if row.is_usable()]
        if not rows:
            have = ", ".join(f"{count} {name}" for name, count in self.splits.items())
            texts = "" if languages is None else f" with texts in {', '.join(languages)}"
            raise UserError(f"{spec} has no row{texts} in split {split!r} (it has {have}); choose another.")
        self.captions, self.phrases = count_captions(rows), count_phrases(rows)
        self.languages = tuple(self.captions or self.phrases)
        self.rows = Dataset.from_dict(to_columns(root, rows), features=COLUMNS)

    def __len__(self) -> int:
        return len(self.rows)

    def example(self, index: int, language: str | None = None) -> Example:
        """Example `index`. Raises BrokenExample if its image can't be decoded; boxes outside the image are left out."""
        row = self.rows[index]
        image = read_image(Path(row["image"]["path"]))
        captions = tuple(Caption(**caption) for caption in row["captions"])
        extras = json.loads(row["extras"])
        if "depth" in extras:
            extras["depth"] = below(self.root, extras["depth"])
        if synthetic := tuple(Caption(**caption) for caption in row["captions_synthetic"]):
            extras["captions_synthetic"] = synthetic
        return Example(
            image,
            tuple(caption for caption in captions if caption.language == language) or captions,
            tuple(to_regions(row["regions"], image.shape[2], image.shape[1], language)),
            row["file_name"],
            extras,
        )

    def texts(self) -> Iterator[str]:
        """Every caption and phrase of the split, in the file's order."""
        for row in self.rows.select_columns(["captions", "regions"]):
            yield from (caption["text"] for caption in row["captions"])
            yield from (phrase["text"] for region in row["regions"] for phrase in region["phrases"])

    def describe(self) -> dict[str, Any]:
        """Counts of what stands in the split, and what was left out of the file."""
        boxes = [region["n_boxes"] for row in self.rows.select_columns("regions") for region in row["regions"]]
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


def read_rows(metadata: Path) -> tuple[list[Row], Counter[str]]:
    """The usable rows of the file, and how many rows and regions are not, by reason."""
    if not metadata.is_file():
        raise UserError(
            f"{metadata.parent} has no metadata.jsonl; write one with a JSON object a line, like "
            '{"file_name": "images/1.jpg", "captions": ["a red apple"]}.'
        )
    rows: list[Row] = []
    broken, dropped = Counter[str](), Counter[str]()
    check_image = partial(check_file, cache(partial(scan, metadata.parent)))
    for line in read_lines(metadata):
        try:
            row = parse_row(line)
            check_image(row.file_name)
        except BrokenExample as reason:
            broken[str(reason)] += 1
        else:
            rows.append(row)
            dropped += row.dropped
    lines = len(rows) + broken.total()
    if not lines:
        raise UserError(f"{metadata} is empty; give it one JSON object a line.")
    if (rows or broken[NO_TEXT] == lines) and not any(row.captions or row.regions for row in rows):
        raise UserError(f"{metadata} has no column 'captions', 'caption' or 'text' with anything in it; add one.")
    if broken.total() > BROKEN_LINES * lines:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in broken.most_common(3))
        raise UserError(f"{broken.total()} of {lines} lines of {metadata} can't be used ({reasons}); mend the file.")
    return rows, broken + dropped


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines that are not blank; one that is too long comes cut, just long enough to be seen as too long."""
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE + 1):
            if line.strip():
                yield line
            while len(line) > MAX_LINE and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE + 1)


def scan(root: Path, folder: str) -> dict[str, bool]:
    """Every file of a folder below root, in one pass, and whether it stays below root once links are followed."""
    try:
        place = (root / folder).resolve()
        with os.scandir(place) as entries:
            inside = place.is_relative_to(root)
            return {
                entry.name: inside and (not entry.is_symlink() or Path(entry.path).resolve().is_relative_to(root))
                for entry in entries
                if (Path(entry.path).is_file() if entry.is_symlink() else entry.is_file())
            }
    except (OSError, RuntimeError, ValueError):  # not there, a circle of links, a name no system takes
        return {}


def below(root: Path, name: Any) -> str:
    """The file a column names, wherever its links lead still below root. Raises BrokenExample."""
    path = (root / parse_file_name(name)).resolve()
    if not path.is_relative_to(root):
        raise BrokenExample("path leaves the folder")
    return str(path)


def check_file(files_of: Callable[[str], dict[str, bool]], file_name: str) -> None:
    path = PurePosixPath(file_name)
    files = files_of(str(path.parent))
    if path.name not in files:
        raise BrokenExample("image file is missing")
    if not files[path.name]:
        raise BrokenExample("path leaves the folder")


def split_rows(rows: list[Row]) -> dict[str, list[Row]]:
    """The rows by split. Where no row names one, a hash of the file name holds out one in fifty as val, for ever."""
    named = any(row.split for row in rows)
    held_out = {row.file_name: row.split for row in rows if row.split in ("val", "test")}
    splits: dict[str, list[Row]] = {}
    for row in rows:
        digest = hashlib.blake2b(row.file_name.encode(), digest_size=8).digest()
        drawn = "val" if not named and int.from_bytes(digest) % HELD_OUT == 0 else "train"
        # An image that any row holds out never trains, whatever its other rows say.
        splits.setdefault(held_out.get(row.file_name) or row.split or drawn, []).append(row)
    return splits


def check_languages(languages: Sequence[str], rows: list[Row], spec: str) -> None:
    have = dict.fromkeys([*count_captions(rows), *count_phrases(rows)])
    if missing := [code for code in languages if code not in have]:
        raise UserError(f"{spec} has no texts in {', '.join(missing)}; its languages are {', '.join(have)}.")


def count_captions(rows: list[Row]) -> dict[str, int]:
    """Captions per language, the most frequent first."""
    return dict(Counter(caption.language for row in rows for caption in row.captions).most_common())


def count_phrases(rows: list[Row]) -> dict[str, int]:
    """Phrases per language, the most frequent first."""
    return dict(Counter(code for row in rows for region in row.regions for code in region.phrases).most_common())


def to_columns(root: Path, rows: list[Row]) -> dict[str, list[Any]]:
    return {
        "image": [str(root / row.file_name) for row in rows],
        "file_name": [row.file_name for row in rows],
        "captions": [[vars(caption) for caption in row.captions] for row in rows],
        "captions_synthetic": [[vars(caption) for caption in row.synthetic] for row in rows],
        "regions": [[from_region(region) for region in row.regions] for row in rows],
        "extras": [json.dumps(row.extras) for row in rows],
    }


def from_region(region: Region) -> dict[str, Any]:
    phrases = [{"language": code, "text": text} for code, text in region.phrases.items()]
    return {"bbox": region.bbox, "phrases": phrases, "n_boxes": region.n_boxes}


def to_regions(columns: list[dict[str, Any]], width: int, height: int, language: str | None) -> Iterator[Region]:
    """The regions whose box lies in the decoded image, each with its phrase in `language` where it has one."""
    for column in columns:
        phrases = {phrase["language"]: phrase["text"] for phrase in column["phrases"]}
        if language is not None and language in phrases:
            phrases = {language: phrases[language]}
        try:
            yield Region(fit_box(column["bbox"], width, height), phrases, column["n_boxes"])
        except BrokenExample:
            continue


def read_image(path: Path) -> Tensor:
    """The image of a file: [3, H, W] uint8, upright, of an animation the first frame. Raises BrokenExample.

    torchvision decodes JPEG and PNG, PIL the rest; the size is read from the header before any pixel is.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL's remarks on odd metadata, and on sizes: ours is the bound
            if path.stat().st_size > MAX_BYTES:
                raise BrokenExample(f"image file over {MAX_BYTES // 1_000_000} MB")
            data = bytearray(path.read_bytes())
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                if image.mode.startswith(("I", "F")) and image.format != "PNG":
                    raise BrokenExample("image of over 8 bits a channel that is not PNG")  # PIL would cut, not scale
                if image.format not in ("JPEG", "MPO", "PNG"):
                    return functional.pil_to_tensor(ImageOps.exif_transpose(image).convert("RGB"))
            pixels = decode_image(torch.frombuffer(data, dtype=torch.uint8), mode="RGB", apply_exif_orientation=True)
            return functional.to_dtype(pixels, torch.uint8, scale=True)  # a PNG may have 16 bits
    except Image.DecompressionBombError:
        raise BrokenExample(f"image over {MAX_PIXELS // 1_000_000} megapixels") from None
    except BrokenExample:
        raise
    except Exception:  # decoders raise all sorts over hostile bytes
        raise BrokenExample("image can't be decoded") from None
