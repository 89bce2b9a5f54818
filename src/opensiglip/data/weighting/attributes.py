"""Which values of some attributes each row of a source shows, read in one pass, in processes.

A row's values come from the attribute's entry in the column `groups`, or from the column of the attribute's name, which
sources keep only of the names in `metadata.EXTRAS`, such as `label`; where a row has neither, from what its captions
name (`Lexicon`). Memory is 4 bytes a row and the distinct sets of values.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opensiglip.data.example import Example, Source, reason_of
from opensiglip.data.parallel import each
from opensiglip.data.weighting.lexicon import Lexicon, Value
from opensiglip.errors import UserError
from opensiglip.progress import progress

STRETCH = 512  # rows that a process reads at a time
PATTERNS = 100_000  # distinct sets of values

Pattern = frozenset[Value]


@dataclass(frozen=True)
class Shown:
    """The values that rows show: of row i those of `patterns[rows[i]]`. Broken rows show none."""

    patterns: tuple[Pattern, ...]
    rows: NDArray[np.int32]
    broken: Counter[str]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Rows of each pattern."""
        return np.bincount(self.rows, minlength=len(self.patterns))

    def values(self, attribute: str) -> list[Value]:
        """The values of an attribute that any row shows, in the alphabet's order."""
        return sorted({value for pattern in self.patterns for value in pattern if value[0] == attribute})


@dataclass(frozen=True)
class Stretch:
    """Up to 512 rows of a source, as tasks of `each`."""

    source: Source
    attributes: Sequence[str]
    lexicon: Lexicon

    def __call__(self, number: int) -> tuple[list[Pattern], Counter[str]]:
        """The pattern of each row, and why rows could not be read."""
        patterns, broken = list[Pattern](), Counter[str]()
        for row in range(number * STRETCH, min((number + 1) * STRETCH, len(self.source))):
            try:
                patterns.append(self.of(self.source.example(row)))
            except Exception as error:
                broken[reason_of(error)] += 1
                patterns.append(frozenset())
        return patterns, broken

    def of(self, example: Example) -> Pattern:
        """The values that an example shows."""
        given = {name: column(example, name) for name in self.attributes}
        own = {(name, value) for name, values in given.items() for value in values or ()}
        unsaid = {name for name, values in given.items() if values is None}
        return frozenset(own | {value for value in self.lexicon.named(example.captions) if value[0] in unsaid})


def column(example: Example, attribute: str) -> list[str] | None:
    """The values in an example's column of that name, or in its `groups`; None where it has none."""
    given: Any = example.extras.get(attribute)
    groups = example.extras.get("groups")
    if given is None and isinstance(groups, Mapping):
        given = groups.get(attribute)
    if given is None:
        return None
    return [str(one).strip() for one in (given if isinstance(given, list | tuple) else [given]) if str(one).strip()]


def read_attributes(source: Source, attributes: Sequence[str], lexicon: Lexicon, workers: int) -> Shown:
    """Read every row once. Raises UserError where no row shows an attribute at all."""
    why = (
        "the column `groups` has no such entry, and no caption has a word of its list (there are lists of "
        f"{', '.join(lexicon.attributes)}); give --lexicon"
    )
    stretches = each(Stretch(source, attributes, lexicon), -(-len(source) // STRETCH), workers)
    with progress(total=len(source), unit="row") as bar:
        return numbered(source, attributes, stretches, why, bar)


def numbered(
    source: Source,
    attributes: Sequence[str],
    stretches: Iterable[tuple[list[Pattern], Counter[str]]],
    why: str,
    bar: Any,
) -> Shown:
    """The patterns of a source's rows, in order, each pattern once. Raises UserError where an attribute has no value.

    `why` says then what was looked for.
    """
    numbers: dict[Pattern, int] = {frozenset(): 0}
    rows, broken = np.zeros(len(source), np.int32), Counter[str]()
    at = 0
    for patterns, unreadable in stretches:
        for pattern in patterns:
            rows[at] = numbers.setdefault(pattern, len(numbers))
            at += 1
        broken.update(unreadable)
        bar.update(len(patterns))
        if len(numbers) > PATTERNS:
            raise UserError(f"rows show more than {PATTERNS} different sets of values; name attributes of fewer.")
    shown = Shown(tuple(numbers), rows, broken)
    for name in attributes:
        if not shown.values(name):
            raise UserError(f"no row of {source.name} shows {name!r}: {why}.")
    return shown
