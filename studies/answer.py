"""What a study found: figures of every run with intervals, neighbours of the papers' order compared, in words."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from opensiglip.checkpoints.run_folder import RunFolder
from opensiglip.evaluation import compare
from studies.engine import JUDGED, Job
from studies.intervals import Interval, Values, over_seeds
from studies.study import Figure, Study

AS, OTHER, OPEN = "as there", "the other way round", "not told apart"


@dataclass(frozen=True)
class Column:
    """One figure of all runs: its interval over seeds, and the value at each seed; without an entry, it has it not."""

    figure: Figure
    means: dict[str, Interval]
    by_seed: dict[str, list[float]]
    steps: list[tuple[str, str, Interval]]  # lower, higher, and how much higher: neighbours of the papers' order

    @property
    def words(self) -> str:
        """What came out, in one sentence or a few."""
        low_to_high = sorted(self.means, key=lambda name: self.means[name].value)
        said = f"{self.figure.title}: {' < '.join(f'{name} {self.means[name].value:.3f}' for name in low_to_high)}."
        if not self.steps:
            return said
        words = [self.verdict(interval) for _, _, interval in self.steps]
        counted = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))
        if not self.figure.source:
            return (
                f"{said} {'; '.join(f'{b} against {a}: {w}' for (a, b, _), w in zip(self.steps, words, strict=True))}."
            )
        expected = " < ".join(name for name in self.figure.order if name in self.means)
        return f"{said} {self.figure.source} has {expected}: of {len(words)} neighbours {counted}."

    def verdict(self, interval: Interval) -> str:
        """How a difference came out: as the source has it, the other way round, or open where its interval holds 0."""
        if interval.low <= 0 <= interval.high:
            return OPEN
        return (AS, OTHER)[interval.high < 0] if self.figure.source else ("higher", "lower")[interval.high < 0]


def columns(study: Study, jobs: Sequence[Job]) -> list[Column]:
    """A column for each figure that a run has. Raises UserError where an evaluation can't be read."""
    judged: dict[str, list[dict[str, Any]]] = {run.name: [] for run in study.runs}
    for job in jobs:
        judged[job.run.name].append(compare.read(job.folder / JUDGED / compare.RESULTS))
    found = []
    for figure in study.figures:
        key = (figure.task, figure.name)
        values: dict[str, list[Values]] = {
            name: [result["values"][key] for result in results]
            for name, results in judged.items()
            if all(key in result["values"] for result in results)
        }
        by_seed = {
            name: [judged[name][seed]["figures"][key][0] for seed in range(len(values[name]))] for name in values
        }
        steps = [
            (lower, higher, over_seeds(values[higher], values[lower]))
            for lower, higher in pairwise(name for name in figure.order if name in values)
        ]
        if values:
            found.append(Column(figure, {name: over_seeds(some) for name, some in values.items()}, by_seed, steps))
    return found


def costs(jobs: Sequence[Job]) -> dict[str, dict[str, Any]]:
    """By run, of its first seed: weights of image tower and all, images seen, and the command that repeats it."""
    said: dict[str, dict[str, Any]] = {}
    for job in jobs:
        summary = json.loads(RunFolder(job.folder).summary.read_text(encoding="utf-8"))
        said.setdefault(
            job.run.name,
            {
                "recipe": summary["recipe"],
                "tower": summary["parameters"]["vision"],
                "parameters": summary["parameters"]["total"],
                "images": summary["images_seen"],
                "command": summary["command"],
            },
        )
    return said


def table(found: Sequence[Column], runs: Sequence[str]) -> str:
    """The figures for the terminal, then what they say."""
    heads = [column.figure.title for column in found]
    wide = [max(24, len(head) + 2) for head in heads]
    first = max(map(len, runs)) + 2
    lines = [" " * first + "".join(f"{head:>{width}}" for head, width in zip(heads, wide, strict=True))]
    for name in runs:
        cells = [said(column.means.get(name)) for column in found]
        lines.append(f"{name:<{first}}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, wide, strict=True)))
    for column in found:
        lines += ["", column.words]
        lines += [f"  {higher} - {lower}: {said(interval, '+')}" for lower, higher, interval in column.steps]
    return "\n".join(lines)


def said(interval: Interval | None, sign: str = "") -> str:
    """A mean and its interval; a dash where there is none."""
    if interval is None:
        return "-"
    return f"{interval.value:{sign}.3f} [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"
