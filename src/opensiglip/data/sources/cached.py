"""A source whose images and texts a frozen tower has encoded: examples without pixels, with the tower's output."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from opensiglip.data.example import BrokenExample, Caption, Example, Region, Source
from opensiglip.data.fields.states import IMAGE, TEXTS
from opensiglip.data.seen import HASH, image_hash

IMAGES_FILE, TEXTS_FILE, ROWS_FILE = "images.npy", "texts.npy", "rows.jsonl"


class CachedSource(Source):
    """Another source's examples in its order, with `extras` IMAGE [T, D] and TEXTS {caption: [D]}.

    With IMAGE they are framed and have no pixels; with TEXTS alone they are the source's own.

    Arrays are memory-mapped: a batch reads its own rows, and processes of a machine share the pages.
    """

    def __init__(self, source: Source, folders: Sequence[Path], side: int, tokens: int | None = None) -> None:
        """`folders`: of the images' states, of the texts', or of both; each has the same rows.

        `side`: pixels of a framed image. `tokens`: how many of an image's states are read; None: all.
        """
        self.source, self.folders, self.side, self.tokens = source, folders, side, tokens
        self.name, self.languages, self.skipped = source.name, source.languages, source.skipped
        self.weight, self.shards, self.lanes = source.weight, source.shards, source.lanes
        self.example_weights, self.language_weights = source.example_weights, source.language_weights
        self.rows = (folders[0] / ROWS_FILE).read_bytes()
        ends = np.flatnonzero(np.frombuffer(self.rows, np.uint8) == ord("\n"))
        self.starts = np.concatenate([[0], ends + 1])
        self._open()

    def _open(self) -> None:
        self.images, self.texts_of = (
            next((np.load(folder / file, mmap_mode="r") for folder in self.folders if (folder / file).is_file()), None)
            for file in (IMAGES_FILE, TEXTS_FILE)
        )

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("images", "texts_of")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self.starts) - 1

    def example(self, index: int, language: str | None = None) -> Example:
        row = json.loads(self.rows[self.starts[index] : self.starts[index + 1]])
        if "broken" in row:
            raise BrokenExample(row["broken"])
        captions = tuple(Caption(*caption) for caption in row["captions"])
        first = row["first_text"]
        extras: dict[str, Any] = {}
        if self.texts_of is not None:
            extras[TEXTS] = {c.text: self.texts_of[first + at] for at, c in enumerate(captions)}
            extras[TEXTS].setdefault("", np.zeros_like(self.texts_of[0]))  # of an example without a caption
        if self.images is None:  # a tower that learns reads the pixels
            example = self.source.example(index, language)
            return replace(example, extras={**example.extras, **extras})
        extras[IMAGE] = self.images[index, : self.tokens]
        spoken = tuple(c for c in captions if c.language == language) or captions
        regions = tuple(Region(**region | {"bbox": tuple(region["bbox"])}) for region in row["regions"])
        if "hash" in row:
            extras[HASH] = int(row["hash"], 16)
        image = torch.zeros(1, dtype=torch.uint8).expand(3, self.side, self.side)  # its pixels are not needed again
        return Example(image, spoken, regions, row["name"], extras, row["group"])

    def seen(self, index: int) -> dict[str, Any]:
        """`facts_of` the example that was encoded."""
        row = json.loads(self.rows[self.starts[index] : self.starts[index + 1]])
        return {name: row[name] for name in ("pixels", "captions") if name in row}

    @property
    def pictured(self) -> Source:
        return self.source.pictured

    def group(self, index: int) -> str:
        return self.source.group(index)

    def texts(self) -> Iterator[str]:
        return self.source.texts()

    def describe(self) -> dict[str, Any]:
        return self.source.describe()

    def labels(self) -> Sequence[Any]:
        return self.source.labels()


def to_row(example: Example | BrokenExample, first_text: int) -> str:
    """A line of `ROWS_FILE`, of an example in its frame; its captions' states begin at row `first_text`."""
    if isinstance(example, BrokenExample):
        return json.dumps({"broken": str(example)} | facts_of(example))
    facts = {
        "name": example.name,
        "group": example.group,
        "regions": [asdict(region) for region in example.regions],
        "first_text": first_text,
        "hash": f"{image_hash(example, example.image):016x}",
    }
    return json.dumps(facts | facts_of(example))


def facts_of(example: Example | BrokenExample) -> dict[str, Any]:
    """What an example's states were made of: a hash of its pixels, its captions; of one that can't be read, neither."""
    if isinstance(example, BrokenExample):
        return {"pixels": ""}
    captions = [[c.text, c.language, c.source, *([] if c.weight == 1 else [c.weight])] for c in example.captions]
    pixels = hashlib.blake2b(example.image.contiguous().numpy().tobytes(), digest_size=8).hexdigest()
    return {"pixels": pixels, "captions": captions}
