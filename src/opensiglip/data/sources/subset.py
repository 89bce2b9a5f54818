"""Some rows of a source as a source, and a source cut in two."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from opensiglip.data.example import Example, Source
from opensiglip.errors import UserError


class Subset(Source):
    """The rows `rows`, ascending, of another source."""

    def __init__(self, source: Source, rows: Sequence[int]) -> None:
        self.source, self.rows = source, np.asarray(rows, np.int64)
        self.name, self.languages, self.skipped = source.name, source.languages, source.skipped
        self.weight, self.fetches, self.lanes = source.weight, source.fetches, source.lanes
        self.language_weights = source.language_weights
        if source.example_weights is not None:
            self.example_weights = source.example_weights[self.rows]
            if not self.example_weights.any():
                raise UserError(f"--example-weights of {source.name} are 0 for every example that is not set aside.")
        if source.shards is not None:
            ends = np.searchsorted(self.rows, np.cumsum(source.shards))
            self.shards = [count for count in np.diff(ends, prepend=0).tolist() if count]

    def __len__(self) -> int:
        return len(self.rows)

    def example(self, index: int, language: str | None = None) -> Example:
        return self.source.example(int(self.rows[index]), language)

    def without_pixels(self, index: int, height: int, width: int) -> Example:
        return self.source.without_pixels(int(self.rows[index]), height, width)

    @property
    def pictured(self) -> Source:
        return Subset(self.source.pictured, self.rows.tolist())

    def encoded(self, index: int) -> bytes | None:
        return self.source.encoded(int(self.rows[index]))

    def group(self, index: int) -> str:
        return self.source.group(int(self.rows[index]))

    def prepare(self, indices: Sequence[int]) -> None:
        self.source.prepare(self.rows[list(indices)].tolist())

    def texts(self) -> Iterator[str]:
        return self.source.texts()

    def describe(self) -> dict[str, Any]:
        return self.source.describe() | {"rows": len(self.rows)}

    def labels(self) -> Sequence[Any]:
        labels = self.source.labels()
        return [labels[row] for row in self.rows] if labels else ()


def split_off(source: Source, count: int) -> tuple[list[int], list[int]]:
    """Rows that stay, and about `count` that do not: whole images, chosen by a hash of what names them.

    The same whatever the seed, so that runs are judged on the same ones. Raises UserError where over half would go.
    """
    if 2 * count > len(source):
        raise UserError(
            f"--set-aside {count} is more than half of the {len(source)} examples of {source.name}; "
            f"give at most {len(source) // 2}."
        )
    groups: dict[str, list[int]] = {}
    for row in range(len(source)):
        groups.setdefault(source.group(row), []).append(row)
    aside: set[int] = set()
    for group in sorted(groups, key=lambda name: hashlib.blake2b(name.encode(errors="surrogatepass")).digest()):
        if len(aside) >= count:
            break
        aside.update(groups[group])
    if 2 * len(aside) > len(source):  # of few images with many rows each, whole ones are more than was asked for
        raise UserError(
            f"--set-aside {count} takes {len(aside)} of the {len(source)} examples of {source.name}, as rows of one "
            "image stay together; give fewer."
        )
    return [row for row in range(len(source)) if row not in aside], sorted(aside)
