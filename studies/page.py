"""A study's page, which needs nothing else: its question, the answer in words, table and plot, and how to repeat it."""

import json
from collections.abc import Sequence
from importlib.resources import files
from math import ceil
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure as Drawing

from opensiglip.disk import unwritten
from opensiglip.reports.curves import INK, LINE, svg
from opensiglip.reports.page import pages
from studies.answer import Column, interval_text
from studies.study import Study

ABREAST = 4  # panels of the plot


def write(out: Path, study: Study, found: Sequence[Column], facts: dict[str, Any]) -> None:
    """study.html, study.json and study.png in `out`. `facts`: data, budget, seeds, command, costs of the runs."""
    template = pages().from_string(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    runs = [run.name for run in study.runs]
    drawing = plot(found, runs)
    text = template.render(
        study=study,
        found=found,
        runs=runs,
        facts=facts,
        interval_text=interval_text,
        plot=svg(drawing, ""),
    )
    figures = {
        column.figure.title: {
            name: {"mean": interval.value, "ci95": interval[1:], "by_seed": column.by_seed[name]}
            for name, interval in column.means.items()
        }
        | {"differences": {f"{b} - {a}": list(interval) for a, b, interval in column.differences}}
        for column in found
    }
    stored = {"study": study.name, "question": study.question, **facts, "figures": figures}
    try:
        (out / "study.html").write_text(text, encoding="utf-8")
        (out / "study.json").write_text(json.dumps(stored, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        drawing.savefig(out / "study.png", dpi=120, facecolor="white")
    except OSError as error:
        raise unwritten(out, error) from None


def plot(found: Sequence[Column], runs: Sequence[str]) -> Drawing:
    """A panel for each figure, at most `ABREAST` in a row: every run's mean and interval, and faintly its seeds."""
    rows = max(1, ceil(len(found) / ABREAST))
    abreast = max(1, ceil(len(found) / rows))
    size = 3.6 * abreast, (0.7 + 0.34 * len(runs)) * rows
    drawing = Drawing(figsize=size, layout="constrained", facecolor="none")
    panels = list(drawing.subplots(rows, abreast, sharey=True, squeeze=False).flat)
    for axes in panels[len(found) :]:
        axes.set_axis_off()
    for axes, column in zip(panels, found, strict=False):
        for place, name in enumerate(runs):
            if name not in column.means:
                continue
            value, low, high = column.means[name]
            seeds = column.by_seed[name]
            axes.plot(seeds, [place] * len(seeds), "o", color=INK, alpha=0.3, markersize=4, markeredgewidth=0)
            axes.plot([low, high], [place, place], color=LINE, linewidth=1.5)
            axes.plot([value], [place], "o", color=LINE, markersize=6)
        axes.set_facecolor("none")
        axes.set_title(column.figure.title, fontsize=9, color=INK)
        axes.set_yticks(range(len(runs)), runs)
        axes.set_ylim(len(runs) - 0.5, -0.5)
        axes.grid(axis="x", color=INK, alpha=0.15, linewidth=0.5)
        axes.tick_params(colors=INK, labelsize=8, length=0)
        axes.spines[:].set_visible(False)
    return drawing
