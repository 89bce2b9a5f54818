"""Which rows are train and which are val where the data does not say."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from opensiglip.data.sources.metadata import SPLITS

HELD_OUT = 50  # one row in so many is val
NAMES = re.compile(rf"(?:^|[-_.])({'|'.join(SPLITS)})(?=[-_.\d]|$)")


class Rows(Protocol):
    """The rows of a split."""

    def __len__(self) -> int: ...

    def row(self, index: int) -> int:
        """The row, among those of all splits, that is number `index` of this one."""


class Part:
    """All rows, all but every fiftieth ("train"), or every fiftieth ("val"): arithmetic, so without memory."""

    def __init__(self, sizes: Sequence[int], part: Literal["all", "train", "val"]) -> None:
        self.part = part
        counts = [0, *(self._count(int(rows)) for rows in np.cumsum(sizes))]
        self.sizes: NDArray[np.int64] = np.diff(counts)  # rows of this part in each shard
        self.count = counts[-1]  # asked for at every row

    def __len__(self) -> int:
        return self.count

    def row(self, index: int) -> int:
        if self.part == "train":
            return index + index // (HELD_OUT - 1)
        return index if self.part == "all" else HELD_OUT * index + HELD_OUT - 1

    def _count(self, rows: int) -> int:
        """How many of the first `rows` rows are in this part."""
        held_out = rows // HELD_OUT
        return {"all": rows, "train": rows - held_out, "val": held_out}[self.part]


class Chosen:
    """Rows by number."""

    def __init__(self, rows: Sequence[int]) -> None:
        self.rows = np.asarray(rows, np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> int:
        return int(self.rows[index])


def is_held_out(name: str) -> bool:
    """Is the image of this name one of the fiftieth that is val? By a hash, so for ever."""
    digest = hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) % HELD_OUT == 0


class Named(Protocol):
    """A file, wherever it lies."""

    @property
    def name(self) -> str: ...

    @property
    def parent(self) -> PurePath: ...


def split_in(file: Named) -> str | None:
    """The split that a file's name says, or its folder's whole name: `train-00000-of-00004.parquet`, `val/0.tar`."""
    found = NAMES.findall(file.name.lower())
    return SPLITS[found[-1]] if found else SPLITS.get(file.parent.name.lower())


def choose(splits: Sequence[str | None], split: str) -> tuple[list[int], Literal["all", "train", "val"]]:
    """Of shards or tables that name these splits (None: none) which to read for a split, and which part of them.

    What names no split is train; where nothing is val, every fiftieth row of train is held out as val. The list is
    empty where there is no such split.
    """
    named = [name or "train" for name in splits]
    if "val" in named or split not in ("train", "val"):
        return [at for at, name in enumerate(named) if name == split], "all"
    return [at for at, name in enumerate(named) if name == "train"], "train" if split == "train" else "val"
