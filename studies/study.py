"""What a study is: a question, runs that differ in one thing, how they are judged, and what the papers found."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from opensiglip.errors import UserError


@dataclass(frozen=True)
class Run:
    """One of the runs: a recipe, and the flags that it does not share with the others."""

    name: str
    recipe: str
    flags: Mapping[str, Any] = field(default_factory=dict)
    after: str | None = None  # an earlier run that this goes on from, where its one checkpoint of `keep` stands
    reference: str | None = None  # an earlier run whose model is its --reference
    share: float = 1.0  # of the budget's steps
    options: str = ""  # of scenes, added to those that it trains on; all runs are judged without

    @property
    def waits(self) -> bool:
        """Does it need another run?"""
        return self.after is not None or self.reference is not None

    def trains_on(self, data: str) -> str:
        """The study's data with the run's own options. Raises UserError where there is nothing to add them to."""
        if not self.options:
            return data
        kind, colon, _ = data.partition(":")
        if kind != "scenes":
            raise UserError(f"--data {data}: run {self.name} trains on scenes with {self.options}; name scenes.")
        return f"{data}{',' if colon else ':'}{self.options}"


@dataclass(frozen=True)
class Figure:
    """A figure that the runs are compared by: `name` as the evaluation's `task` has it, `title` in words.

    `order`: runs from low to high, as `source` has them; neighbours are compared. `against`: in place of an order, the
    run that every other is compared with. `pairs`: further ones that are compared, the higher as expected last.
    """

    task: str
    name: str
    title: str
    order: tuple[str, ...] = ()
    source: str = ""
    against: str = ""
    pairs: tuple[tuple[str, str], ...] = ()
    by_run: Mapping[str, str] = field(default_factory=dict)  # another name of the metric in some runs


@dataclass(frozen=True)
class Budget:
    """What every run gets: flags of `opensiglip train`, and keywords of `evaluate`."""

    train: Mapping[str, Any]
    judge: Mapping[str, Any]


@dataclass(frozen=True)
class Study:
    """A declared set of runs at equal data, steps, size and seeds."""

    name: str
    question: str
    about: str  # what a reader has to know of the runs and the figures
    data: str
    runs: tuple[Run, ...]
    figures: tuple[Figure, ...]
    budgets: Mapping[str, Budget]
    on_towers: bool = False  # does every run begin with the towers of --vision and --text, on the user's --data?

    @property
    def tasks(self) -> list[str]:
        """Of the evaluation, each once."""
        return list(dict.fromkeys(figure.task for figure in self.figures))
