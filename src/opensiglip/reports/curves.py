"""Numbers over steps as small SVGs that take the page's colours. Only tick labels are text, so no glyph is missing."""

import io
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

INK, LINE = "#010203", "#040506"  # stand-ins that matplotlib draws with, replaced by colours of the page
POINTS = 400  # at most, of a curve: more can't be told apart, and make the page heavy
WINDOW = 0.04  # of the steps: the smoothed line is a mean over so many to either side
LOGARITHMIC = 20  # a curve whose largest value is so many times its smallest is drawn on a logarithmic scale
GROWN = {"resolution": "images of {0} × {0} pixels", "length": "texts of {0} tokens"}  # of a row, in words


def switches(rows: Sequence[dict[str, Any]]) -> dict[int, list[str]]:
    """The steps at which a loss term begins after the first row, with the names of those that do."""
    found: dict[int, list[str]] = {}
    begun: set[str] = set()
    for row in rows:
        for name in row:
            if name.startswith("loss/") and name not in begun:
                begun.add(name)
                if row["step"] > rows[0]["step"]:
                    found.setdefault(row["step"], []).append(name.removeprefix("loss/").replace("_", " "))
    return found


def growth(rows: Sequence[dict[str, Any]]) -> dict[int, list[str]]:
    """The steps from which on images or texts are larger, with what they are then."""
    found: dict[int, list[str]] = {}
    for name, words in GROWN.items():
        sized = [row for row in rows if name in row]
        for before, row in pairwise(sized):
            if row[name] != before[name]:
                found.setdefault(row["step"], []).append(words.format(row[name]))
    return dict(sorted(found.items()))


def curve(rows: Sequence[dict[str, Any]], name: str, *, measured: bool = True, least: float | None = None) -> str:
    """An <svg> of a value over steps: rows as faint points under their running mean; unless `measured`, a plain line.

    Rows where the value is missing or None have no point; where all are, the text is empty. All curves of a run share
    the extent of x, so that a term that begins late stands where it began. A dashed line stands at each step at which
    a loss term begins or images or texts grow, a dotted one at `least`, the value under which something is wrong.
    """
    points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    if not points:
        return ""
    steps, values = np.array(points, float).T
    figure = Figure(figsize=(3.2, 1.9), layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    first, last = rows[0]["step"], rows[-1]["step"]
    axes.set_xlim(first, max(last, first + 1))
    if measured and 0 < LOGARITHMIC * values.min() < values.max():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.5g}"))
    axes.grid(color=INK, alpha=0.15, linewidth=0.5)
    axes.tick_params(colors=INK, labelsize=8, length=0)
    axes.spines[:].set_visible(False)
    for step in switches(rows) | growth(rows):
        axes.axvline(step, color=INK, alpha=0.6, linewidth=1, linestyle="--")
    if least is not None:
        axes.axhline(least, color=INK, alpha=0.6, linewidth=1, linestyle=":")
    few = np.linspace(0, len(steps) - 1, min(len(steps), POINTS)).round().astype(int)
    if measured:
        axes.plot(steps[few], values[few], ".", color=LINE, alpha=0.25, markersize=3, markeredgewidth=0)
    line = running_mean(steps, values, WINDOW * (last - first)) if measured else values
    axes.plot(steps[few], line[few], color=LINE, linewidth=1.5)
    return svg(figure, name)


def running_mean(steps: np.ndarray, values: np.ndarray, reach: float) -> np.ndarray:
    """Mean of the values at most `reach` steps away; less far at the start, where a loss falls too fast to average."""
    reaches = np.minimum(reach, steps - steps[0])
    low = np.searchsorted(steps, steps - reaches, "left")
    high = np.searchsorted(steps, steps + reaches, "right")
    total = np.concatenate([[0], np.cumsum(values)])
    return (total[high] - total[low]) / (high - low)


def svg(figure: Figure, name: str) -> str:
    """The figure as an <svg> element to stand in HTML: without what would meet other figures' there, in its colours."""
    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):  # ids that no other figure has
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(out, metadata=nothing)
    text = out.getvalue()
    text = re.sub(
        r"<defs>\s*<style.*?</defs>", "", text[text.index("<svg") :], flags=re.DOTALL
    )  # it would style the page
    text = re.sub(r' id="[a-z.\d]+_\d+"', "", text)  # numbered alike in every figure; clips and marks have a hash
    return text.replace(INK, "currentColor").replace(LINE, "var(--predicted)")
