"""The end of a run: judge it on held-out examples, export it, sum it up, draw the report."""

from collections import Counter
from pathlib import Path
from typing import Any

from opensiglip.checkpoints.formats.own import training_card
from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.checkpoints.run_folder import RunFolder
from opensiglip.inference.subject import Subject
from opensiglip.json_file import write_json
from opensiglip.recipes import Recipe
from opensiglip.reports.run_page import write_report
from opensiglip.training.checkpoint import stages
from opensiglip.training.held_out import TASKS, Judgement
from opensiglip.training.learner import Learner
from opensiglip.training.log import read_lines
from opensiglip.training.loop import Loop
from opensiglip.training.record import command


def finish(
    folder: Path,
    config: dict[str, Any],
    loop: Loop,
    recipe: Recipe,
    result: dict[str, Any],
    judgement: Judgement | None,
) -> dict[str, Any]:
    """Write model/, summary.json and report.html; return the summary."""
    model, pipeline = loop.learner.model.eval(), loop.plan.pipeline
    subject = of_run(folder, loop, recipe)
    run = RunFolder(folder)
    rows = read_lines(run.metrics)
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
    summary["losses"] = {name: {"first": first_of(rows, name), "last": last_mean(rows, name)} for name in names}
    if judgement is not None:
        summary["held_out"] = judgement.of(subject)
    summary["figures"] = figures(summary)
    known: dict[str, Any] = {"boxes": recipe.boxes, "tasks": recipe.tasks, "languages": subject.languages}
    card = training_card(config, summary)
    Pretrained.of(model, pipeline, name=str(folder), card=card, **known).save(run.model)
    write_json(run.summary, summary)
    before, held_out = stages(run, model), None if judgement is None else judgement.source
    write_report(run.report, summary, rows, subject, model.architecture, held_out, before)
    return summary


def of_run(folder: Path, loop: Loop, recipe: Recipe) -> Subject:
    """The run's model, as its weights stand, to be judged in the run's precision."""
    return Subject.of(
        loop.learner.model,
        loop.plan.pipeline,
        name=str(folder),
        boxes=recipe.boxes,
        tasks=recipe.tasks,
        languages=tuple(dict.fromkeys(code for source in loop.plan.sources for code in source.languages)),
        autocast=loop.accelerator.autocast,
    )


def first_of(rows: list[dict[str, Any]], name: str) -> float | None:
    """The first value: a term may begin late, and its first loss may not have been finite."""
    return next((row[name] for row in rows if row.get(name) is not None), None)


def last_mean(rows: list[dict[str, Any]], name: str, window: int = 20) -> float | None:
    """Mean of the last rows: one batch's loss alone is noise."""
    values = [row[name] for row in rows[-window:] if row.get(name) is not None]
    return sum(values) / len(values) if values else None


def count_parameters(learner: Learner) -> dict[str, int]:
    """Parameters per part of the model, of what only training needs (heads and teacher), and in all."""
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in learner.model.named_children()}
    total = sum(p.numel() for p in learner.parameters())
    helpers = total - sum(p.numel() for p in learner.model.parameters())
    return parts | ({"heads and teacher": helpers} if helpers else {}) | {"total": total}


def figures(summary: dict[str, Any]) -> dict[str, str]:
    """The figures of a run in words: loss terms first and last, and what held-out examples say."""
    said = {}
    for name, loss in summary["losses"].items():
        if loss["first"] is not None and loss["last"] is not None:
            said[f"{name}, first and last"] = f"{loss['first']:.3f} -> {loss['last']:.3f}"
    for task in TASKS:
        measures = summary.get("held_out", {}).get(task, {})
        for name, value in measures.items():
            if f"{name}_ci95" in measures:
                low, high = measures[f"{name}_ci95"]
                said[f"held-out {task}, {name.replace('_', ' ')}"] = f"{value:.3f} [{low:.3f}, {high:.3f}]"
            elif name == "chance_r1":
                said["held-out retrieval, chance"] = f"{value:.3f}"
    said["training time"] = f"{summary['training_seconds'] / 60:.1f} min, {summary['images_per_second']:.0f} images/s"
    return said
