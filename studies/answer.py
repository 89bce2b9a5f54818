"""What a study found: every run's metrics with intervals, and paired differences between runs, in words."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any

from opensiglip.checkpoints.run_folder import RunFolder
from opensiglip.errors import UserError
from opensiglip.evaluation import results
from opensiglip.evaluation.metrics.intervals import Interval, mean_over_seeds
from studies.engine import JUDGED, Job
from studies.study import Figure, Study

AS, OTHER, OPEN = "as there", "reversed", "inconclusive"

Values = dict[str, Any]  # what an evaluation keeps of a metric: scores, clusters, perhaps weights
Difference = tuple[str, str, Interval]  # two runs, and how much higher the second is


@dataclass(frozen=True)
class Column:
    """One figure of all runs: its interval over seeds, and the value at each seed. A run that lacks it has no entry."""

    figure: Figure
    means: dict[str, Interval]
    by_seed: dict[str, list[float]]
    steps: list[Difference]  # neighbours of the papers' order, or each run and the one compared with; further pairs
    ranked: list[Difference] = field(default_factory=list)  # neighbours from the lowest mean to the highest

    @property
    def differences(self) -> list[Difference]:
        """All that were taken, each pair once."""
        known = {frozenset(step[:2]) for step in self.steps}
        return self.steps + [some for some in self.ranked if frozenset(some[:2]) not in known]

    @property
    def sentence(self) -> str:
        """The result in one or a few sentences. Runs whose paired interval contains 0 are not ranked."""
        order = sorted(self.means, key=lambda name: self.means[name].value)
        apart = {(lower, higher) for lower, higher, interval in self.ranked if interval.low > 0}
        text = f"{self.figure.title}: {order[0]} {self.means[order[0]].value:.3f}"
        for lower, higher in pairwise(order):
            text += f" {'<' if (lower, higher) in apart else '≈'} {higher} {self.means[higher].value:.3f}"
        text += "." if "≈" not in text else ' ("≈": the paired interval of the two contains 0).'
        if not self.steps:
            return text
        words = [self.verdict(interval) for _, _, interval in self.steps]
        counted = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))
        if not self.figure.source:
            pairs = (f"{b} against {a}: {word}" for (a, b, _), word in zip(self.steps, words, strict=True))
            return f"{text} {'; '.join(pairs)}."
        expected = " < ".join(name for name in self.figure.order if name in self.means)
        return f"{text} {self.figure.source} has {expected}: of {len(words)} neighbours {counted}."

    def verdict(self, interval: Interval) -> str:
        """The verdict on a difference: as in the source, reversed, or inconclusive if its interval contains 0."""
        if interval.low <= 0 <= interval.high:
            return OPEN
        return (AS, OTHER)[interval.high < 0] if self.figure.source else ("higher", "lower")[interval.high < 0]


def columns(study: Study, jobs: Sequence[Job]) -> list[Column]:
    """A column for each figure that a run has. Raises UserError where an evaluation can't be read."""
    judged: dict[str, list[dict[str, Any]]] = {run.name: [] for run in study.runs}
    for job in jobs:
        judged[job.run.name].append(results.load(job.folder / JUDGED / results.FILE))
    found = []
    for figure in study.figures:
        keys = {name: (figure.task, figure.by_run.get(name, figure.name)) for name in judged}
        values: dict[str, list[Values]] = {
            name: [one["values"][keys[name]] for one in seeds]
            for name, seeds in judged.items()
            if all(keys[name] in one["values"] for one in seeds)
        }
        if not values:
            continue
        by_seed = {
            name: [judged[name][seed]["metrics"][keys[name]][0] for seed in range(len(values[name]))] for name in values
        }
        try:
            means = {name: mean_over_seeds(some) for name, some in values.items()}
            by_value = sorted(means, key=lambda name: means[name].value)
            declared = list(pairwise(name for name in figure.order if name in values))
            if figure.against in values:
                declared = [(figure.against, name) for name in values if name != figure.against]
            declared += [pair for pair in figure.pairs if values.keys() >= set(pair)]
            steps, ranked = (
                [(lower, higher, mean_over_seeds(values[higher], values[lower])) for lower, higher in pairs]
                for pairs in (declared, list(pairwise(by_value)))
            )
        except ValueError as error:
            raise UserError(f"the runs were {error}; delete their folders `{JUDGED}`.") from error
        found.append(Column(figure, means, by_seed, steps, ranked))
    return found


def costs(jobs: Sequence[Job]) -> dict[str, dict[str, Any]]:
    """By run: the median over seeds of its images/s, and of its first seed weights, images and the command again."""
    found: dict[str, dict[str, Any]] = {}
    speeds = defaultdict[str, list[float]](list)
    for job in jobs:
        summary = json.loads(RunFolder(job.folder).summary.read_text(encoding="utf-8"))
        speeds[job.run.name].append(summary["images_per_second"])
        found.setdefault(
            job.run.name,
            {
                "recipe": summary["recipe"],
                "tower": summary["parameters"]["vision"],
                "parameters": summary["parameters"]["total"],
                "images": summary["images_seen"],
                "command": summary["command"],
            },
        )
    return {name: cost | {"images_per_second": median(speeds[name])} for name, cost in found.items()}


def table(found: Sequence[Column], costs: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures for the terminal, then what they say. `costs`: of each run."""
    runs, heads = list(costs), [column.figure.title for column in found]
    wide = [max(24, len(head) + 2) for head in heads]
    first = max(map(len, runs)) + 2
    lines = [
        " " * first + "".join(f"{head:>{width}}" for head, width in zip(heads, wide, strict=True)) + "    images/s"
    ]
    for name in runs:
        cells = [interval_text(column.means.get(name)) for column in found]
        lines.append(f"{name:<{first}}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, wide, strict=True)))
        lines[-1] += f"{costs[name]['images_per_second']:>12.1f}"
    for column in found:
        lines += ["", column.sentence]
        lines += [f"  {higher} - {lower}: {interval_text(some, '+')}" for lower, higher, some in column.differences]
    return "\n".join(lines)


def interval_text(interval: Interval | None, sign: str = "") -> str:
    """A mean and its interval; a dash where there is none."""
    if interval is None:
        return "-"
    return f"{interval.value:{sign}.3f} [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"
