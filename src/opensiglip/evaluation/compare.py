"""Several models side by side: metrics, differences from the first, and whether these are more than chance."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from opensiglip.errors import UserError
from opensiglip.evaluation.metrics.intervals import paired_difference
from opensiglip.evaluation.results import FILE, SHARED, comparable, find, load
from opensiglip.evaluation.run import run_evaluation

NO_VALUES = "no values by image are stored"
OTHER_EXAMPLES = "judged on other examples"


@dataclass(frozen=True)
class Comparison:
    """One metric of all models; None where a model has it not.

    `differences` from the first model: [value, low, high], or [value] alone, in whose place `reasons` then says why it
    has no interval.
    """

    task: str  # the benchmark, as evaluation.json names it
    figure: str
    values: list[float | None]
    intervals: list[list[float] | None]  # each model's own
    differences: list[list[float] | None]
    reasons: list[str]  # of each difference; "" where it has an interval or there is none to have


def compare(
    models: Sequence[str],
    data: str | None = None,
    benchmarks: Sequence[str] = (),
    **settings: Any,
) -> tuple[list[str], list[Comparison]]:
    """The models' names, and every metric that has an interval and that two of them have.

    A model is a folder with the evaluation.json that `opensiglip eval --out` leaves, or such a file; any other is
    judged now on `data`, by `benchmarks` and `settings` as `run_evaluation` takes them. Raises UserError on bad input,
    and where two were not judged on the same examples.
    """
    if len(models) < 2:
        raise UserError("`opensiglip compare` takes two models or more.")
    stored = [find(model) for model in models]
    missing = [model for model, path in zip(models, stored, strict=True) if path is None]
    if missing and data is None:
        raise UserError(
            f"{missing[0]} holds no {FILE}; give --data to evaluate it now, or run `opensiglip eval` first."
        )
    evaluations = [
        comparable(run_evaluation(model, str(data), benchmarks, **settings).record) if path is None else load(path)
        for model, path in zip(models, stored, strict=True)
    ]
    for model, evaluation in zip(models[1:], evaluations[1:], strict=True):
        for what in SHARED:
            if evaluation[what] != evaluations[0][what]:
                raise UserError(
                    f"{models[0]} and {model} were not evaluated on the same examples ({what} {evaluations[0][what]!r} "
                    f"and {evaluation[what]!r}), so no difference can be paired; evaluate both with `opensiglip eval`."
                )
    rows = comparisons(evaluations)
    if not rows:
        raise UserError(
            "no two of these models have a metric in common; name other --tasks, or models of the same tasks."
        )
    return [str(evaluation["model"]) for evaluation in evaluations], rows


def comparisons(evaluations: Sequence[dict[str, Any]]) -> list[Comparison]:
    """What two evaluations or more have, in the order of the first that has it."""
    found = []
    for key in dict.fromkeys(key for evaluation in evaluations for key in evaluation["metrics"]):
        metrics = [evaluation["metrics"].get(key, (None, None)) for evaluation in evaluations]
        by_image = [evaluation["values"].get(key) for evaluation in evaluations]
        values = [value for value, _ in metrics]
        if sum(value is not None for value in values) < 2:
            continue
        differences: list[list[float] | None] = []
        reasons: list[str] = []
        for value, some in zip(values[1:], by_image[1:], strict=True):
            difference, reason = None, ""
            if value is not None and values[0] is not None:
                paired = None if by_image[0] is None or some is None else paired_difference(some, by_image[0])
                difference = [value - values[0]] if paired is None else list(paired)
                if paired is None:
                    reason = NO_VALUES if by_image[0] is None or some is None else OTHER_EXAMPLES
            differences.append(difference)
            reasons.append(reason)
        benchmark, name = key
        intervals = [interval for _, interval in metrics]
        found.append(Comparison(benchmark, name, values, intervals, differences, reasons))
    order = list(dict.fromkeys(row.task for row in found))
    return sorted(found, key=lambda row: order.index(row.task))


def table(names: Sequence[str], rows: Sequence[Comparison]) -> str:
    """The metrics, and beside them the differences from the first model; * where 0 lies outside the interval."""
    lines, task = [f"{chr(65 + number)}  {name}" for number, name in enumerate(names)], ""
    letters = [chr(65 + number) for number in range(len(names))]
    heads = [*letters, *(f"{letter} - A, 95 % interval" for letter in letters[1:])]
    for row in rows:
        if row.task != task:
            task = row.task
            lines += ["", f"{task:<48}" + "".join(f"{head:>{8 if len(head) == 1 else 30}}" for head in heads)]
        cells = [f"{'-' if value is None else f'{value:.3f}':>8}" for value in row.values]
        cells += [f"{difference_text(some):>30}" for some in row.differences]
        lines.append(f"  {row.figure.replace('_', ' '):<46}" + "".join(cells))
    for reason in dict.fromkeys(reason for row in rows for reason in row.reasons if reason):
        named = ", ".join(f"{row.task}: {row.figure.replace('_', ' ')}" for row in rows if reason in row.reasons)
        lines += ["", f"no interval of a difference ({reason}): {named}"]
    return "\n".join(lines)


def difference_text(some: list[float] | None) -> str:
    """A difference in words."""
    if some is None:
        return "-"
    value, *interval = some
    if not interval:
        return f"{value:+.3f}"
    mark = "*" if interval[0] > 0 or interval[1] < 0 else " "
    return f"{value:+.3f} [{interval[0]:+.3f}, {interval[1]:+.3f}]{mark}"
