"""What an evaluation shows people: evaluation.html, which needs nothing else, and the table in the terminal."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opensiglip.disk import unwritten
from opensiglip.evaluation.benchmark import Sample
from opensiglip.evaluation.results import FILE, to_json
from opensiglip.evaluation.run import Evaluation
from opensiglip.reports.drawing import as_uri, coloured, jpeg_uri
from opensiglip.reports.maps import class_map, heat_map, range_text
from opensiglip.reports.page import pages

SIDE, SMALL = 256, 112  # pixels of a picture, and of one beside it
QUALITY = 80  # of their JPEG
DIRECTIONS = {
    "image_to_text": "image → text",
    "text_to_image": "text → image",
    "cross_lingual": "text → text of another language",
}
# How the field writes them; a benchmark's name among them is that of a heading.
SPELLED = {
    "iou": "IoU",
    "miou": "mIoU",
    "cider": "CIDEr",
    "bleu4": "BLEU-4",
    "rmse": "RMSE",
    "openvocab": "open vocabulary",
    "zeroshot": "zero-shot",
}
RECALL = re.compile(rf"({'|'.join(DIRECTIONS)})_r(\d+)")


@dataclass(frozen=True)
class MetricRow:
    """A metric in words, under the heading of what it belongs to ("" for the whole benchmark)."""

    heading: str
    name: str
    value: str
    interval: str = ""


@dataclass(frozen=True)
class DrawnSample:
    """A sample as the template takes it: pictures as data URIs, those beside it with what stands under each."""

    source: str
    beside: list[tuple[str, str]]
    sample: Sample


def write_evaluation(out: Path, evaluation: Evaluation) -> None:
    """Write evaluation.json and evaluation.html into the folder `out`. Raises UserError where that can't be done."""
    record = evaluation.record
    benchmarks = {
        name: {
            "anchor": f"benchmark-{number}",
            "title": in_words(name),
            "about": evaluation.about[name],
            "headline": next((row for row in rows(result.metrics, plain=True) if row.interval), None),
            "tables": tables(result.metrics),
            "samples": [draw(sample) for sample in result.samples],
            "counts": counts(result.samples),
            "heat": any(sample.heat_maps for sample in result.samples),
        }
        for number, (name, result) in enumerate(evaluation.results.items(), 1)
    }
    figures = (record.get("protocol", {}).get("published") or {}).get("figures", {})
    page = (
        pages()
        .get_template("evaluation_page.html")
        .render(
            record=record,
            benchmarks=benchmarks,
            left_out={in_words(name): reason for name, reason in record["left_out"].items()},
            published=[(": ".join(map(in_words, name.split(": "))), pair) for name, pair in figures.items()],
            side=SIDE,
            scenes=record["data"].startswith("scenes"),
        )
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / FILE).write_text(to_json(record), encoding="utf-8", errors="replace")
        (out / "evaluation.html").write_text(page, encoding="utf-8", errors="replace")
    except OSError as error:
        raise unwritten(out, error) from None


def table(record: dict[str, Any]) -> str:
    """The metrics for the terminal, a benchmark under the other."""
    lines = [f"{record['model']} on {record['examples']} examples of {record['data']} ({record['split']})"]
    for name, metrics in record["tasks"].items():
        lines += ["", name]
        for row in rows(metrics):
            words = f"{row.heading}: {row.name}" if row.heading else row.name
            lines.append(f"  {words:<44} {row.value:>9}  {row.interval}".rstrip())
    lines += [f"\n{name} left out: {reason}" for name, reason in record["left_out"].items()]
    if "protocol" in record:
        lines += ["", *protocol_lines(record["protocol"])]
    lines += [f"\nnote: {note}" for note in record.get("notes", [])]
    return "\n".join(lines)


def protocol_lines(protocol: dict[str, Any]) -> list[str]:
    """Ours beside the nearest published model's, and what differs from the published protocol."""
    published = protocol["published"]
    lines = ["published   no figure of a released model is known here"]
    if published is not None:
        lines = [f"published   {published['model']}, the nearest in width and tokens ({published['source']})"]
        lines.append(f"  {'':<44} {'ours':>9}  published")
        for name, (ours, theirs) in published["figures"].items():
            lines.append(f"  {name.replace('_', ' '):<44} {number_text(ours):>9}  {number_text(theirs):>9}")
    return [*lines, "", *(f"differs     {sentence}" for sentence in protocol["differs"])]


def in_words(name: str) -> str:
    """A metric's name for a page: "image → text, first hit (R@1)"."""
    if found := RECALL.fullmatch(name):
        depth = "first hit" if found[2] == "1" else f"among the first {found[2]}"
        return f"{DIRECTIONS[found[1]]}, {depth} (R@{found[2]})"
    if name == "chance_r1":
        return "first hit by chance"
    return " ".join(SPELLED.get(word, word) for word in name.replace("_", " ").split(" "))


def counts(samples: Sequence[Sample]) -> dict[str, int]:
    """What a page's filter offers: how many samples there are, how many hits and misses."""
    hits = sum(sample.correct for sample in samples)
    return {"all": len(samples), "hits": hits, "misses": len(samples) - hits}


def rows(metrics: dict[str, Any], heading: str = "", *, plain: bool = False) -> Iterator[MetricRow]:
    """Every number of a benchmark, those of its parts under their names; `plain`: names as a page has them."""
    for name, value in metrics.items():
        words = in_words(name) if plain else name.replace("_", " ")
        if isinstance(value, dict):
            yield from rows(value, f"{heading} {words}".strip(), plain=plain)
        elif not name.endswith("_ci95"):
            low, high = metrics.get(f"{name}_ci95", (None, None))
            interval = "" if low is None else f"{number_text(low)} – {number_text(high)}"
            yield MetricRow(heading, words, number_text(value), interval)


def tables(metrics: dict[str, Any]) -> dict[str, list[MetricRow]]:
    """The rows by heading."""
    grouped: dict[str, list[MetricRow]] = {}
    for row in rows(metrics, plain=True):
        grouped.setdefault(row.heading, []).append(row)
    return grouped


def number_text(value: Any) -> str:
    """A number in four figures, a count as it is."""
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def draw(sample: Sample) -> DrawnSample:
    """A sample with its boxes and maps drawn."""
    boxes = coloured(sample.target_boxes, sample.predicted_boxes)
    beside = [(as_uri(image, side=SMALL, quality=QUALITY), "") for image in sample.images]
    beside += [(jpeg_uri(heat_map(sample.image, values), QUALITY), range_text(values)) for values in sample.heat_maps]
    beside += [(jpeg_uri(class_map(classes), QUALITY), "") for classes in sample.class_maps]
    return DrawnSample(as_uri(sample.image, boxes, SIDE, QUALITY), beside, sample)
