"""Several models side by side: figures, differences from the first, and whether these are more than chance."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from opensiglip.errors import UserError
from opensiglip.evaluation.metrics.paired import difference, flat
from opensiglip.evaluation.run import evaluate

RESULTS = "evaluation.json"
LARGEST = 500_000_000  # bytes of one
ALIKE = ("data", "split", "examples", "seed")  # what evaluations must have in common


@dataclass(frozen=True)
class Row:
    """One figure of all models; None where a model has it not.

    `differences` from the first model: [value, low, high], or [value] alone where single answers are not known.
    """

    task: str
    figure: str
    values: list[float | None]
    intervals: list[list[float] | None]  # each model's own
    differences: list[list[float] | None]


def compare(
    models: Sequence[str], data: str | None = None, tasks: Sequence[str] = (), **settings: Any
) -> tuple[list[str], list[Row]]:
    """The models' names, and every figure that has an interval and that two of them have.

    A model is a folder with the evaluation.json that `opensiglip eval --out` leaves, or such a file; any other is
    judged now on `data`, by `tasks` and `settings` as `evaluate` takes them. Raises UserError on bad input, and where
    two were not judged on the same examples.
    """
    if len(models) < 2:
        raise UserError("`opensiglip compare` takes two models or more.")
    stored = [find(model) for model in models]
    missing = [model for model, path in zip(models, stored, strict=True) if path is None]
    if missing and data is None:
        raise UserError(
            f"{missing[0]} holds no {RESULTS}; give --data to judge it now, or run `opensiglip eval` first."
        )
    results = [
        tidy(evaluate(model, str(data), tasks, **settings)) if path is None else read(path)
        for model, path in zip(models, stored, strict=True)
    ]
    for model, result in zip(models[1:], results[1:], strict=True):
        for what in ALIKE:
            if result[what] != results[0][what]:
                raise UserError(
                    f"{models[0]} and {model} were not judged on the same examples ({what} {results[0][what]!r} and "
                    f"{result[what]!r}); judge them alike with `opensiglip eval`."
                )
    return [str(result["model"]) for result in results], rows(results)


def find(model: str) -> Path | None:
    """The evaluation that a path names or holds."""
    path = Path(model).expanduser()
    path = path if path.suffix == ".json" else path / RESULTS
    return path if path.is_file() else None


def read(path: Path) -> dict[str, Any]:
    """A stored evaluation, as `tidy` leaves it. Raises UserError if it is none."""
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError("it is too large")
        return tidy(json.loads(path.read_text(encoding="utf-8")))
    except (AttributeError, KeyError, OSError, RecursionError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is no evaluation ({error}); make it with `opensiglip eval MODEL --out DIR`."
        ) from error


def tidy(stored: dict[str, Any]) -> dict[str, Any]:
    """What is compared of an evaluation: by task and name the figures that have an interval, and their single values.

    Raises KeyError, TypeError, ValueError or AttributeError on anything else.
    """
    figures, values = {}, {}
    for task, nested in stored["tasks"].items():
        said = flat(nested)
        for name in said:
            if f"{name}_ci95" in said:
                low, high = said[f"{name}_ci95"]
                figures[task, name] = (float(said[name]), [float(low), float(high)])
        for name, some in stored["values"].get(task, {}).items():
            kinds = {"scores": float, "clusters": int} | ({"weights": float} if "weights" in some else {})
            behind = {kind: [number(x) for x in some[kind]] for kind, number in kinds.items()}
            if {len(numbers) for numbers in behind.values()} != {len(behind["scores"]) or 1}:
                raise ValueError(f"the values of {name} are not of one length")
            values[task, name] = behind
    return {what: stored[what] for what in ("model", *ALIKE)} | {"figures": figures, "values": values}


def rows(results: Sequence[dict[str, Any]]) -> list[Row]:
    """What two tidy results or more have, in the order of the first that has it."""
    found = []
    for key in dict.fromkeys(key for result in results for key in result["figures"]):
        said = [result["figures"].get(key, (None, None)) for result in results]
        behind = [result["values"].get(key) for result in results]
        values = [value for value, _ in said]
        if sum(value is not None for value in values) < 2:
            continue
        differences: list[list[float] | None] = []
        for value, some in zip(values[1:], behind[1:], strict=True):
            if value is None or values[0] is None:
                differences.append(None)
                continue
            paired = None if behind[0] is None or some is None else difference(behind[0], some)
            differences.append([value - values[0]] if paired is None else list(paired))
        task, name = key
        found.append(Row(task, name, values, [interval for _, interval in said], differences))
    tasks = list(dict.fromkeys(row.task for row in found))
    return sorted(found, key=lambda row: tasks.index(row.task))


def table(names: Sequence[str], found: Sequence[Row]) -> str:
    """The figures, and below each the differences from the first model; * where 0 lies outside the interval."""
    lines, task = [f"{chr(65 + number)}  {name}" for number, name in enumerate(names)], ""
    letters = [chr(65 + number) for number in range(len(names))]
    heads = [*letters, *(f"{letter} - A, 95 % interval" for letter in letters[1:])]
    for row in found:
        if row.task != task:
            task = row.task
            lines += ["", f"{task:<48}" + "".join(f"{head:>{8 if len(head) == 1 else 30}}" for head in heads)]
        cells = [f"{'-' if value is None else f'{value:.3f}':>8}" for value in row.values]
        cells += [f"{said(some):>30}" for some in row.differences]
        lines.append(f"  {row.figure.replace('_', ' '):<46}" + "".join(cells))
    return "\n".join(lines)


def said(some: list[float] | None) -> str:
    """A difference in words."""
    if some is None:
        return "-"
    value, *interval = some
    if not interval:
        return f"{value:+.3f}"
    mark = "*" if interval[0] > 0 or interval[1] < 0 else " "
    return f"{value:+.3f} [{interval[0]:+.3f}, {interval[1]:+.3f}]{mark}"


def write(out: Path, names: Sequence[str], found: Sequence[Row]) -> None:
    """compare.json and compare.png in the folder `out`. Raises UserError where that can't be done."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"models": list(names), "rows": [asdict(row) for row in found]}, indent=2, ensure_ascii=False)
        (out / "compare.json").write_text(text + "\n", encoding="utf-8")
        plot(out / "compare.png", names, found)
    except OSError as error:
        raise UserError(f"can't write to {out}: {error.strerror or error}.") from None


def plot(path: Path, names: Sequence[str], found: Sequence[Row]) -> None:
    """A line for each figure with every model's value and interval; a panel for each task, which has its own scale."""
    from matplotlib.figure import Figure

    from opensiglip.reports.drawing import COLORS

    tasks = {task: [row for row in found if row.task == task] for task in dict.fromkeys(row.task for row in found)}
    heights = [1 + len(some) for some in tasks.values()]
    figure = Figure(figsize=(9, 0.8 + 0.32 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(tasks), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, (task, some) in zip(panels, tasks.items(), strict=True):
        for number, name in enumerate(names):
            known = [(place, row) for place, row in enumerate(some) if row.values[number] is not None]
            values = [row.values[number] or 0.0 for _, row in known]
            ends = [row.intervals[number] or [value, value] for (_, row), value in zip(known, values, strict=True)]
            axes.errorbar(
                values,
                [place + 0.5 * (number + 0.5) / len(names) - 0.25 for place, _ in known],
                xerr=[
                    [max(0.0, value - low) for value, (low, _) in zip(values, ends, strict=True)],
                    [max(0.0, high - value) for value, (_, high) in zip(values, ends, strict=True)],
                ],
                fmt="o",
                markersize=4,
                color=COLORS[number % len(COLORS)],
                label=name,
            )
        axes.set_yticks(range(len(some)), [row.figure.replace("_", " ") for row in some], fontsize=8)
        axes.invert_yaxis()
        axes.set_title(task, fontsize=9, loc="left")
        axes.grid(axis="x", alpha=0.3)
        axes.tick_params(labelsize=8)
    if len(panels):
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", fontsize=8, frameon=False)
    figure.savefig(path, dpi=120)
