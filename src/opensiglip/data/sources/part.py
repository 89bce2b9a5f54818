"""Some rows of a source as a source, and a source cut in two."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from opensiglip.data.example import Example, Source
from opensiglip.errors import UserError


class Part(Source):
    """The rows `rows` of another source, in that order."""

    def __init__(self, source: Source, rows: Sequence[int]) -> None:
        self.source, self.rows = source, list(rows)
        self.name, self.languages, self.skipped = source.name, source.languages, source.skipped
        self.weight, self.fetches = source.weight, source.fetches

    def __len__(self) -> int:
        return len(self.rows)

    def example(self, index: int, language: str | None = None) -> Example:
        return self.source.example(self.rows[index], language)

    def encoded(self, index: int) -> bytes | None:
        return self.source.encoded(self.rows[index])

    def group(self, index: int) -> str:
        return self.source.group(self.rows[index])

    def prepare(self, indices: Sequence[int]) -> None:
        self.source.prepare([self.rows[index] for index in indices])

    def texts(self) -> Iterator[str]:
        return self.source.texts()

    def describe(self) -> dict[str, Any]:
        return self.source.describe() | {"rows": len(self.rows)}

    def labels(self) -> Sequence[Any]:
        labels = self.source.labels()
        return [labels[row] for row in self.rows] if labels else ()


def split_off(source: Source, count: int) -> tuple[list[int], list[int]]:
    """Rows that stay, and about `count` that do not: whole images, chosen by a hash of what names them.

    The same whatever the seed, so that runs are judged on the same ones. Raises UserError where half or more would go.
    """
    if 2 * count > len(source):
        raise UserError(f"--set-aside {count} is more than half of the {len(source)} examples of {source.name}.")
    groups: dict[str, list[int]] = {}
    for row in range(len(source)):
        groups.setdefault(source.group(row), []).append(row)
    aside: set[int] = set()
    for group in sorted(groups, key=lambda name: hashlib.blake2b(name.encode(errors="surrogatepass")).digest()):
        if len(aside) >= count:
            break
        aside.update(groups[group])
    return [row for row in range(len(source)) if row not in aside], sorted(aside)
