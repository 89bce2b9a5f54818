"""What `opensiglip eval` leaves behind: evaluation.json, and a page that needs nothing else; and its table in print."""

import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from opensiglip.errors import UserError
from opensiglip.evaluation.benchmark import Findings, Picture, Task
from opensiglip.reports.drawing import PREDICTED, TRUE, as_uri

SMALL = 112  # pixels of a picture beside another


@dataclass(frozen=True)
class Row:
    """A figure in words, under the heading of what it belongs to ("" for the whole task)."""

    heading: str
    name: str
    value: str
    interval: str = ""


@dataclass(frozen=True)
class Shown:
    """A picture as the template takes it."""

    source: str
    beside: list[str]
    right: bool
    asked: str
    answers: tuple[str, ...]
    truths: tuple[str, ...]


def write(out: Path, results: dict[str, Any], found: dict[str, Findings], tasks: dict[str, Task]) -> None:
    """Write evaluation.json and evaluation.html into the folder `out`. Raises UserError where that can't be done."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files(__package__).joinpath("evaluation_page.html").read_text(encoding="utf-8"))
    shown = {
        name: {
            "about": about(tasks[name]),
            "tables": tables(findings.figures),
            "pictures": [show(picture) for picture in findings.pictures],
        }
        for name, findings in found.items()
    }
    page = template.render(results=results, tasks=shown, style=style(), scenes=results["data"].startswith("scenes"))
    figures = {name: some for name, some in results.items() if name != "values"}
    values = json.dumps(results["values"], allow_nan=False)  # thousands of numbers: on one line
    text = json.dumps(figures, indent=2, ensure_ascii=False, allow_nan=False)[:-2] + f',\n  "values": {values}\n}}'
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "evaluation.json").write_text(text + "\n", encoding="utf-8", errors="replace")
        (out / "evaluation.html").write_text(page, encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"can't write to {out}: {error.strerror or error}.") from None


def table(results: dict[str, Any]) -> str:
    """The figures for the terminal, a task under the other."""
    lines = [f"{results['model']} on {results['examples']} examples of {results['data']} ({results['split']})"]
    for name, figures in results["tasks"].items():
        lines += ["", name]
        for row in rows(figures):
            words = f"{row.heading}: {row.name}" if row.heading else row.name
            lines.append(f"  {words:<44} {row.value:>9}  {row.interval}".rstrip())
    lines += [f"\n{name} left out: {reason}" for name, reason in results["left_out"].items()]
    return "\n".join(lines)


def rows(figures: dict[str, Any], heading: str = "") -> Iterator[Row]:
    """Every number of a task, those of its parts under their names."""
    for name, value in figures.items():
        words = name.replace("_", " ")
        if isinstance(value, dict):
            yield from rows(value, f"{heading} {words}".strip())
        elif not name.endswith("_ci95"):
            low, high = figures.get(f"{name}_ci95", (None, None))
            interval = "" if low is None else f"{said(low)} – {said(high)}"
            yield Row(heading, words, said(value), interval)


def tables(figures: dict[str, Any]) -> dict[str, list[Row]]:
    """The rows by heading."""
    grouped: dict[str, list[Row]] = {}
    for row in rows(figures):
        grouped.setdefault(row.heading, []).append(row)
    return grouped


def said(value: Any) -> str:
    """A number in four figures, a count as it is."""
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def about(task: Task) -> str:
    """The first paragraph of a task's docstring: what it measures."""
    return " ".join((inspect.getdoc(task) or "").partition("\n\n")[0].split())


def show(picture: Picture) -> Shown:
    """A picture with its boxes drawn."""
    boxes = [(box, TRUE) for box in picture.true_boxes] + [(box, PREDICTED) for box in picture.found_boxes]
    beside = [as_uri(image, side=SMALL) for image in picture.beside]
    source = as_uri(picture.image, boxes)
    return Shown(source, beside, picture.right, picture.asked, picture.answers, picture.truths)


@cache
def style() -> str:
    """The style sheet of this page and of a run's report."""
    return files(__package__).joinpath("style.css").read_text(encoding="utf-8")
