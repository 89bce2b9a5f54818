"""Sizes that grow while training: `112@0,224@0.8` is 112 for four fifths of the steps, then 224.    (CLIPA)"""

import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from opensiglip.errors import UserError

SCHEDULED = ("resolution", "length")  # keywords of a recipe that take such sizes
PART = re.compile(r"\s*(\d{1,6})@(\d+(?:\.\d+)?|\.\d+)\s*", re.ASCII)


@dataclass(frozen=True)
class SizeSchedule:
    """`sizes`, each from its share of training in `starts` on. They grow, and the last is the model's."""

    sizes: tuple[int, ...]
    starts: tuple[float, ...]

    @classmethod
    def parse(cls, flag: str, text: str) -> "SizeSchedule":
        """Of `SIZE@SHARE,SIZE@SHARE`. Raises UserError."""
        parts = [PART.fullmatch(part) for part in text.split(",")]
        sizes = tuple(int(part[1]) for part in parts if part)
        starts = tuple(float(part[2]) for part in parts if part)
        grow = all(a < b for pairs in (pairwise(sizes), pairwise(starts)) for a, b in pairs)
        if None in parts or not grow or starts[0] != 0 or starts[-1] >= 1:
            raise UserError(
                f"{flag} {text[:60]!r} is neither a number nor SIZE@SHARE,SIZE@SHARE with sizes and shares of training "
                "that grow, the first share 0 and the last below 1; give such as 112@0,224@0.8."
            )
        return cls(sizes, starts)

    @property
    def last(self) -> int:
        return self.sizes[-1]

    def at(self, progress: float) -> int:
        """The size of a step at the share `progress` of training."""
        return self.sizes[bisect_right(self.starts, progress) - 1]

    def spans(self) -> list[tuple[int, float, float]]:
        """Each size with the shares of training where it begins and ends."""
        return list(zip(self.sizes, self.starts, [*self.starts[1:], 1.0], strict=True))

    def describe(self, unit: str) -> str:
        """In words: "112 pixels up to 80% of training, then 224 pixels"."""
        return ", then ".join(
            f"{unit.format(size)}{f' up to {end:.0%} of training' if end < 1 else ''}" for size, _, end in self.spans()
        )


def schedules(keywords: Mapping[str, Any]) -> dict[str, SizeSchedule]:
    """The schedules among a recipe's keywords. Raises UserError."""
    return {
        name: SizeSchedule.parse(f"--{name}", value)
        for name, value in keywords.items()
        if name in SCHEDULED and isinstance(value, str)
    }
