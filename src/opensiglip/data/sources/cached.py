"""A source whose images and texts a frozen tower has encoded: examples without pixels, with the tower's output."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from opensiglip.data.example import BrokenExample, Caption, Example, Region, Source
from opensiglip.data.fields.states import IMAGE, TEXTS
from opensiglip.data.seen import HASH, image_hash
from opensiglip.data.sources.images import blank
from opensiglip.data.sources.state_store import StateStore, checksum_of, key_of
from opensiglip.data.text import TextPipeline

REMEMBERED = 2**17


@dataclass(frozen=True)
class TextInput:
    """What a text tower reads of a text. `padded`: does it read the padding, too?"""

    pipeline: TextPipeline
    padded: bool

    def ids(self, text: str) -> np.ndarray:
        """ids [L] int64."""
        ids = self.pipeline.fixed(text)
        real = np.flatnonzero(ids != self.pipeline.policy.pad_id)
        return ids if self.padded else ids[: real[-1] + 1 if len(real) else 1]

    def key(self, text: str) -> bytes:
        """By which its states are found: texts of the same ids share them."""
        return key_of(self.ids(text).tobytes())


@dataclass(frozen=True)
class TextRows:
    """What a tower made of texts, by text."""

    store: StateStore
    input: TextInput
    keys: dict[str, bytes] = field(default_factory=dict)  # of `REMEMBERED` texts: a tokenizer takes longer than a read

    def __getitem__(self, text: str) -> np.ndarray:
        key = self.keys.get(text) or self.input.key(text)
        if len(self.keys) < REMEMBERED:
            self.keys[text] = key
        return self.store[key]


class CachedSource(Source):
    """Another source's examples in its order, with `extras` IMAGE [T, D] and TEXTS, `TextRows`.

    With IMAGE they are framed and have no pixels; with TEXTS alone they are the source's own.

    States are memory-mapped: a batch reads its own rows, and processes of a machine share the pages.
    """

    def __init__(
        self,
        source: Source,
        lines: Path | None = None,
        images: Path | None = None,
        texts: tuple[Path, TextInput] | None = None,
        *,
        side: int,
        tokens: int | None = None,
    ) -> None:
        """`lines`: a file by `write_lines` on the source. `images`, `texts`: folders of states, where they are read.

        `side`: pixels of a framed image. `tokens`: how many of an image's states are read; None: all.
        """
        self.source, self.side, self.tokens = source, side, tokens
        self.name, self.languages, self.skipped = source.name, source.languages, source.skipped
        self.weight, self.shards, self.lanes = source.weight, source.shards, source.lanes
        self.example_weights, self.language_weights = source.example_weights, source.language_weights
        self.lines = Lines(b"" if lines is None else lines.read_bytes())
        self.images = None if images is None else StateStore(images)
        self.text_rows = None if texts is None else TextRows(StateStore(texts[0]), texts[1])

    def __len__(self) -> int:
        return len(self.source)

    def example(self, index: int, language: str | None = None) -> Example:
        texts = {} if self.text_rows is None else {TEXTS: self.text_rows}
        if self.images is None:  # a tower that learns reads the pixels
            example = self.source.example(index, language)
            return replace(example, extras={**example.extras, **texts})
        row = json.loads(self.lines[index])
        captions = tuple(Caption(*caption) for caption in row.get("captions", ()))
        spoken = tuple(c for c in captions if c.language == language) or captions
        extras = {IMAGE: self.states(row), HASH: int(row["hash"], 16), **texts}
        regions = tuple(Region(**region | {"bbox": tuple(region["bbox"])}) for region in row["regions"])
        image = blank(self.side, self.side)  # its pixels are not needed again
        return Example(image, spoken, regions, row["name"], extras, row["group"])

    def states(self, row: dict[str, Any]) -> np.ndarray:
        """Those of the image in a row of `lines`. Raises BrokenExample."""
        if "broken" in row:
            raise BrokenExample(row["broken"])
        assert self.images is not None
        return self.images[bytes.fromhex(row["image"])][: self.tokens]

    @property
    def pictured(self) -> Source:
        return self.source.pictured

    def encoded(self, index: int) -> bytes | None:
        return self.source.encoded(index)

    def without_pixels(self, index: int, height: int, width: int) -> Example:
        return self.source.without_pixels(index, height, width)

    def group(self, index: int) -> str:
        return self.source.group(index)

    def texts(self) -> Iterator[str]:
        return self.source.texts()

    def describe(self) -> dict[str, Any]:
        return self.source.describe()

    def labels(self) -> Sequence[Any]:
        return self.source.labels()


class Lines(Sequence[bytes]):
    """The lines of a file by number, in the bytes of the file: a line each example, no object each line."""

    def __init__(self, data: bytes) -> None:
        self.data = data.partition(b"\n")[2]
        ends = np.flatnonzero(np.frombuffer(self.data, np.uint8) == ord("\n"))
        self.starts = np.concatenate([[0], ends + 1])

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: Any) -> Any:
        return self.data[self.starts[index] : self.starts[index + 1]]


def read_lines(file: Path, count: int) -> Sequence[bytes] | None:
    """The lines in a file, `count` of them; None where there is none that is as it was written."""
    if not file.is_file():
        return None
    data = file.read_bytes()
    checksum, _, rest = data.partition(b"\n")
    lines = Lines(data)
    return lines if checksum == checksum_of(rest).encode() and len(lines) == count else None


def write_lines(file: Path, lines: Sequence[bytes]) -> None:
    """A file of lines in the order of a source, as `to_line` makes them, behind their checksum."""
    data = b"".join(lines)
    part = file.with_name(f"{file.stem}.{os.getpid()}.part")  # of this run: another may be writing the same
    part.write_bytes(checksum_of(data).encode() + b"\n" + data)
    part.replace(file)


def to_line(example: Example, regions: Sequence[Region], image: bytes, seen: int) -> bytes:
    """What is read of an example beside its states, which are found by the key `image`.

    regions: in the frame. seen: the image's perceptual hash.
    """
    facts = {
        "image": image.hex(),
        "captions": [[c.text, c.language, c.source, *([] if c.weight == 1 else [c.weight])] for c in example.captions],
        "regions": [asdict(region) for region in regions],
        "name": example.name,
        "group": example.group,
        "hash": f"{image_hash(replace(example, extras=example.extras | {HASH: seen}), example.image):016x}",
    }
    return json.dumps(facts).encode() + b"\n"


def broken_line(reason: str, image: bytes) -> bytes:
    """The line of an example that can't be read."""
    return json.dumps({"image": image.hex(), "broken": reason}).encode() + b"\n"


def key_in(line: bytes) -> bytes:
    """The key of a line's image; empty where its file can't be read."""
    return bytes.fromhex(json.loads(line)["image"])


def texts_in(lines: Sequence[bytes]) -> Iterator[str]:
    """The captions in lines."""
    for line in lines:
        yield from (caption[0] for caption in json.loads(line).get("captions", ()))
