"""RUN/report.html: one page that shows a run and needs nothing else: no script, no file, no network."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from opensiglip.data.example import Source
from opensiglip.data.scenes.source import Scenes
from opensiglip.disk import whole_file
from opensiglip.inference.predictor import Predictor
from opensiglip.models.model import Model
from opensiglip.models.sizes import SHAPES, Architecture
from opensiglip.reports.curves import GROWN, curve, growth, switches
from opensiglip.reports.held_out_samples import held_out_samples
from opensiglip.reports.page import pages
from opensiglip.reports.patch_colours import patch_maps
from opensiglip.reports.selected_examples import Selection
from opensiglip.types import Reading

NOT_SIGNALS = ("step", "loss", *GROWN)  # columns of a row that are not signals
PACE = {"lr": "learning rate", "grad_norm": "gradient norm, before clipping", "images_per_second": "images per second"}


@dataclass(frozen=True)
class Cell:
    """A figure in words, and its 95 % interval where it has one."""

    value: str
    interval: str = ""


@dataclass(frozen=True)
class Table:
    """Held-out figures of one task: the model's in the first column, blind baselines in those after it."""

    title: str
    asked: str  # what was measured, in plain words
    columns: tuple[str, ...]
    rows: dict[str, list[Cell]]
    verdict: str


@dataclass(frozen=True)
class Chart:
    """A curve with its name; `change` is where it began and ended, `reading` how it is to be read."""

    name: str
    svg: str
    change: str = ""
    reading: str = ""


def write_report(
    path: Path,
    summary: dict[str, Any],
    rows: list[dict[str, Any]],
    subject: Predictor,
    architecture: Architecture,
    held_out: Source | None,
    stages: Mapping[str, Model],
    readings: Mapping[str, Reading] = {},
    chosen: Selection | None = None,
) -> None:
    """Write the page. `summary` is what summary.json holds, `rows` are those of metrics.jsonl.

    `stages` are the model as it was when a later part of the recipe began; `readings` by name say how curves are read;
    `chosen` is what a run that curates has selected most and least often.
    """
    judged = summary.get("held_out", {})
    shown, patches = [], []
    if held_out is not None:
        shown = held_out_samples(subject, held_out, judged["examples"])
        before = {name: subject.with_vision(stage.vision) for name, stage in stages.items()}
        patches = patch_maps({**before, f"after {summary['steps']} steps": subject}, held_out)
    # Captions and phrases are other people's words, so everything is escaped but the curves.
    page = (
        pages()
        .get_template("run_page.html")
        .render(
            summary=summary,
            recipe=summary["recipe"].rpartition(":")[2],
            size=size(architecture),
            frame=str(subject.frame),
            when=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
            tables=[make(judged[task]) for task, make in TABLES.items() if judged.get(task)],
            losses=loss_charts(rows, summary["losses"], readings),
            over_time=judged_charts(rows),
            pace=[Chart(words, curve(rows, name, measured=name != "lr")) for name, words in PACE.items()],
            signals=signal_charts(rows, readings),
            switches=switches(rows),
            growth=growth(rows),
            samples=shown,
            patches=patches,
            chosen=chosen,
            scenes=isinstance(held_out, Scenes),
        )
    )
    with whole_file(path) as part:
        part.write_text(page, encoding="utf-8", errors="replace")  # a caption may hold half a surrogate pair


def loss_charts(
    rows: list[dict[str, Any]], losses: dict[str, Any], readings: Mapping[str, Reading] = {}
) -> list[Chart]:
    """A curve for each term, and for their sum where there are several."""
    names = dict.fromkeys(name for row in rows for name in row if name.startswith("loss/"))
    total = ["loss"] if len(names) > 1 else []
    charts = []
    for name in [*names, *total]:
        ends = losses.get(name, {"first": None, "last": None})
        known = ends["first"] is not None and ends["last"] is not None
        change = f"{ends['first']:.3f} → {ends['last']:.3f}" if known else ""
        words = name.removeprefix("loss/").replace("_", " ") if name != "loss" else "weighted sum"
        reading = readings[name].text if name in readings else ""
        charts.append(Chart(words, curve(rows, name), change, reading))
    return charts


def judged_charts(rows: list[dict[str, Any]]) -> list[Chart]:
    """A curve for each held-out figure that was taken while training."""
    names = dict.fromkeys(name for row in rows for name in row if name.startswith("eval/"))
    return [
        Chart(name.removeprefix("eval/").replace("/", ": ").replace("_", " "), curve(rows, name, measured=False))
        for name in names
    ]


def signal_charts(rows: list[dict[str, Any]], readings: Mapping[str, Reading] = {}) -> list[Chart]:
    """A curve for each number of metrics.jsonl that is neither a loss nor the pace: signs of health."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [
        Chart(
            name.replace("/", ": ").replace("_", " "),
            curve(rows, name, least=readings[name].least if name in readings else None),
            reading=readings[name].text if name in readings else "",
        )
        for name in names
        if not name.startswith(("loss/", "eval/")) and name not in (*NOT_SIGNALS, *PACE)
    ]


def grounding_table(measures: dict[str, Any]) -> Table:
    """Boxes for phrases, beside two ways to answer without looking."""
    columns = {"": "this model", "_constant_box": "the best constant box", "_shuffled_images": "another image"}
    named = {"accuracy": ("boxes found (IoU ≥ 0.5)", percent), "mean_iou": ("mean IoU", three_places)}
    floors = [measures[f"accuracy{suffix}_ci95"][1] for suffix in columns if suffix]
    return Table(
        "Locating phrases",
        f"{measures['phrases']} phrases on {measures['images']} images: the model writes the box of each. Baselines "
        "without the image: the best constant box, and the model's own box for another image.",
        tuple(columns.values()),
        {words: [cell(measures, name + suffix, write) for suffix in columns] for name, (words, write) in named.items()},
        "The model finds more boxes than both baselines: its interval lies above both."
        if measures["accuracy_ci95"][0] > max(floors)
        else "The model's interval does not lie above both: these figures do not show that it uses the image.",
    )


def retrieval_table(measures: dict[str, Any]) -> Table:
    """R@1 both ways, beside chance."""
    ways = {"image_to_text": "image → caption", "text_to_image": "caption → image"}
    chance = measures["chance_r1"]
    rows = {
        f"{words}, {'first hit' if depth == 1 else f'among the first {depth}'} (R@{depth})": [
            cell(measures, name, percent),
            Cell(percent(min(1.0, depth * chance))),
        ]
        for way, words in ways.items()
        for depth in (1, 5, 10)
        if (name := f"{way}_r{depth}") in measures
    }
    return Table(
        "Matching images and captions",
        f"{measures['images']} images, {measures['captions']} captions: how often the nearest one is correct.",
        ("this model", "chance"),
        rows,
        "The model matches better than chance: its intervals lie above it."
        if min(measures[f"{way}_r1_ci95"][0] for way in ways) > chance
        else "The model's intervals do not both lie above chance: these figures do not show that it learned to match.",
    )


TABLES = {"grounding": grounding_table, "retrieval": retrieval_table}


def cell(measures: dict[str, Any], name: str, write: Callable[[float], str]) -> Cell:
    low, high = map(write, measures[f"{name}_ci95"])
    return Cell(write(measures[name]), f"{low.removesuffix(' %')} – {high}")


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def three_places(value: float) -> str:
    return f"{value:.3f}"


def size(architecture: Architecture) -> str:
    """The image tower's size by name, or what it is made of."""
    if architecture.encoder is not None:
        return architecture.encoder
    named = [name for name, shape in SHAPES.items() if shape == architecture.vision]
    if named == ["tiny"]:
        return "tiny"
    shape = named[0] if named else f"{architecture.vision.width} wide, {architecture.vision.depth} deep, "
    return f"{shape}/{architecture.patch}"
