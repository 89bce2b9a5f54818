"""What a comparison of models leaves behind: compare.json, a page, and a plot of every metric with its intervals."""

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from opensiglip.disk import unwritten
from opensiglip.evaluation.compare import Comparison
from opensiglip.reports.drawing import COLORS
from opensiglip.reports.evaluation_page import in_words
from opensiglip.reports.page import pages


def write_comparison(out: Path, names: Sequence[str], rows: Sequence[Comparison]) -> None:
    """compare.json, compare.html and compare.png in the folder `out`. Raises UserError where that can't be done."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"models": list(names), "rows": [asdict(row) for row in rows]}, indent=2, ensure_ascii=False)
        (out / "compare.json").write_text(text + "\n", encoding="utf-8")
        plot(out / "compare.png", names, rows)
        (out / "compare.html").write_text(page(names, rows, out / "compare.png"), encoding="utf-8", errors="replace")
    except OSError as error:
        raise unwritten(out, error) from None


def page(names: Sequence[str], rows: Sequence[Comparison], plot: Path) -> str:
    """The page, which needs nothing else: a table for each benchmark, and the plot."""
    tasks: dict[str, list[dict[str, Any]]] = {}
    reasons: dict[str, list[str]] = {}
    for row in rows:
        words = figure_words(row)
        values = ["–" if value is None else f"{value:.3f}" for value in row.values]
        differences = [difference_cell(some) for some in row.differences]
        tasks.setdefault(in_words(row.task), []).append({"name": words, "cells": values, "differences": differences})
        for reason in dict.fromkeys(filter(None, row.reasons)):
            reasons.setdefault(reason, []).append(f"{in_words(row.task)}, {words}")
    letters = [chr(65 + number) for number in range(len(names))]
    drawn = "data:image/png;base64," + base64.b64encode(plot.read_bytes()).decode()
    template = pages().get_template("comparison_page.html")
    return template.render(names=names, letters=letters, tasks=tasks, reasons=reasons, plot=drawn)


def figure_words(row: Comparison) -> str:
    """A figure's name in words, under the names of what it belongs to."""
    return ": ".join(map(in_words, row.figure.split(": ")))


def difference_cell(some: list[float] | None) -> dict[str, str]:
    """A difference and its interval; ▲ or ▼ where the interval does not hold 0."""
    if some is None:
        return {"value": "–", "interval": ""}
    value, *interval = some
    mark = "" if not interval else "▲ " if interval[0] > 0 else "▼ " if interval[1] < 0 else ""
    return {"value": f"{mark}{value:+.3f}", "interval": " – ".join(f"{end:+.3f}" for end in interval)}


def plot(path: Path, names: Sequence[str], rows: Sequence[Comparison]) -> None:
    """A line for each metric with every model's value and interval; a panel for each benchmark, with its own scale."""
    tasks = {task: [row for row in rows if row.task == task] for task in dict.fromkeys(row.task for row in rows)}
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
                xerr=[  # evaluations of before may hold a value outside its interval
                    [max(0.0, value - low) for value, (low, _) in zip(values, ends, strict=True)],
                    [max(0.0, high - value) for value, (_, high) in zip(values, ends, strict=True)],
                ],
                fmt="o",
                markersize=4,
                color=COLORS[number % len(COLORS)],
                label=name,
            )
        axes.set_yticks(range(len(some)), [figure_words(row) for row in some], fontsize=8)
        axes.invert_yaxis()
        axes.set_title(in_words(task), fontsize=9, loc="left")
        axes.grid(axis="x", alpha=0.3)
        axes.tick_params(labelsize=8)
    if len(panels):
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", fontsize=8, frameon=False)
    figure.savefig(path, dpi=120)
