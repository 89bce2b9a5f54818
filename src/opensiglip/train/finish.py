"""The end of a run: judge it on held-out examples, export it, sum it up, draw the report."""

import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from opensiglip.data.example import Source
from opensiglip.evaluate.base import Context
from opensiglip.evaluate.judged import look
from opensiglip.evaluate.subject import Subject
from opensiglip.evaluate.tasks import judge
from opensiglip.recipes import Recipe
from opensiglip.report.report import write_report
from opensiglip.train.checkpoint import write_json
from opensiglip.train.config import command
from opensiglip.train.export import export
from opensiglip.train.log import read_lines
from opensiglip.train.loop import Loop

AT_THE_END = ("grounding", "retrieval")  # the quick tasks; `opensiglip eval` has them all


def finish(
    folder: Path,
    config: dict[str, Any],
    loop: Loop,
    recipe: Recipe,
    result: dict[str, Any],
    held_out: Source | None,
    count: int,
) -> dict[str, Any]:
    """Write model/, summary.json and report.html; return the summary."""
    model, pipeline = loop.learner.model.eval(), loop.plan.pipeline
    rows = read_lines(folder / "metrics.jsonl")
    first = next((row for row in rows if row.get("loss") is not None), {})
    summary: dict[str, Any] = {
        "recipe": config["recipe"],
        "folder": str(folder),
        "command": command(config, folder),
        "seed": config["train"]["seed"],
        "versions": config["versions"],
        "precision": loop.accelerator.mixed_precision,
        "parameters": count_parameters(loop.learner),
    } | result
    names = [name for name in rows[-1] if name.startswith("loss")] if rows else []
    left_out = sum((source.skipped for source in loop.plan.sources), Counter(result["skipped_examples"]))
    summary["skipped_examples"] = dict(left_out.most_common())  # when the sources were opened, and when read
    summary["losses"] = {name: {"first": first.get(name), "last": last_mean(rows, name)} for name in names}
    languages = dict.fromkeys(code for source in loop.plan.sources for code in source.languages)
    subject = Subject.of(
        model,
        pipeline,
        name=str(folder),
        boxes=recipe.boxes,
        tasks=recipe.tasks,
        languages=tuple(languages),
        autocast=loop.accelerator.autocast,
    )
    if held_out is not None:
        began = time.perf_counter()
        judged = look(subject, held_out, count)
        found, _ = judge(subject, judged, AT_THE_END, Context(loop.plan.sources[0]))
        summary["held_out"] = {
            "source": held_out.name,
            "split": "val",
            "examples": len(judged.examples),
            **{name: findings.figures for name, findings in found.items()},
            "seconds": round(time.perf_counter() - began, 1),
        }
    card = {
        "recipe": config["recipe"].rpartition(":")[2],
        "languages": list(languages),
        "size": config["keywords"].get("size", ""),
        "command": summary["command"],
        "data": config["train"]["data"],
        "steps": result["steps"],
        "images": result["images_seen"],
        "results": figures(summary),
    }
    export(folder / "model", model, recipe, pipeline, card)
    summary["figures"] = figures(summary)
    write_json(folder / "summary.json", summary)
    write_report(folder / "report.html", summary, rows, subject, model.architecture, held_out)
    return summary


def last_mean(rows: list[dict[str, Any]], name: str, window: int = 20) -> float | None:
    """Mean of the last rows: one batch's loss alone is noise."""
    values = [row[name] for row in rows[-window:] if row.get(name) is not None]
    return sum(values) / len(values) if values else None


def count_parameters(learner: torch.nn.Module) -> dict[str, int]:
    """Parameters per part of the model, and in all."""
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in learner.model.named_children()}  # type: ignore[union-attr]
    return parts | {"total": sum(p.numel() for p in learner.parameters())}


def figures(summary: dict[str, Any]) -> dict[str, str]:
    """The figures of a run in words: loss terms first and last, and what held-out examples say."""
    said = {}
    for name, loss in summary["losses"].items():
        if loss["first"] is not None and loss["last"] is not None:
            said[f"{name}, first and last"] = f"{loss['first']:.3f} -> {loss['last']:.3f}"
    for task in AT_THE_END:
        measures = summary.get("held_out", {}).get(task, {})
        for name, value in measures.items():
            if f"{name}_ci95" in measures:
                low, high = measures[f"{name}_ci95"]
                said[f"held-out {task}, {name.replace('_', ' ')}"] = f"{value:.3f} [{low:.3f}, {high:.3f}]"
            elif name == "chance_r1":
                said["held-out retrieval, chance"] = f"{value:.3f}"
    said["training time"] = f"{summary['training_seconds'] / 60:.1f} min, {summary['images_per_second']:.0f} images/s"
    return said
