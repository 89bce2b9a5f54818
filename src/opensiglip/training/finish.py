"""The end of a run: evaluate it on held-out examples, export it, sum it up, draw the report."""

from collections import Counter
from pathlib import Path
from typing import Any

from torch import nn

from opensiglip.checkpoints.formats.own import training_card
from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.checkpoints.run_folder import RunFolder
from opensiglip.inference.predictor import Predictor
from opensiglip.json_file import write_json
from opensiglip.models.ema import Ema
from opensiglip.models.model import Model
from opensiglip.objectives.base import Objective
from opensiglip.recipes import Recipe
from opensiglip.reports.run_page import write_report
from opensiglip.training.checkpoint import stages
from opensiglip.training.curation.extremes import extremes
from opensiglip.training.held_out import QUICK, HeldOut
from opensiglip.training.learner import Learner
from opensiglip.training.log import read_lines
from opensiglip.training.loop import Loop
from opensiglip.training.record import command
from opensiglip.training.tries import tries

MANY_SKIPPED = 0.1  # of the steps


def finish(
    folder: Path,
    record: dict[str, Any],
    loop: Loop,
    recipe: Recipe,
    model: Model,
    result: dict[str, Any],
    evaluated_on: HeldOut | None,
) -> dict[str, Any]:
    """Write `model` (the loop's, whole) to model/, example.png, summary.json and report.html; return the summary."""
    pipeline, subject = loop.plan.pipeline, of_run(folder, loop, recipe, model.eval())
    run = RunFolder(folder)
    rows = read_lines(run.metrics)
    summary: dict[str, Any] = {
        "recipe": record["recipe"],
        "folder": str(folder),
        "command": command(record, folder),
        "seed": record["train"]["seed"],
        "versions": record["versions"],
        "precision": loop.precision,
        "parameters": count_parameters(loop.learner, model),
    } | result
    if advice := skipped_advice(result["skipped_steps"], result["steps"]):
        summary["advice"] = advice
    names = [name for name in rows[-1] if name.startswith("loss")] if rows else []
    left_out = sum((source.skipped for source in loop.plan.sources), Counter(result["skipped_examples"]))
    summary["skipped_examples"] = dict(left_out.most_common())  # when the sources were opened, and when read
    summary["losses"] = {name: first_and_last(rows, name) for name in names}
    if evaluated_on is not None:
        summary["held_out"] = evaluated_on.of(subject)
    summary["figures"] = figures(summary)
    known: dict[str, Any] = {"boxes": recipe.boxes, "tasks": recipe.tasks, "languages": subject.languages}
    card = training_card(record, summary)
    Pretrained.of(model, pipeline, name=str(folder), card=card, **known).save(run.model)
    before, held_out = stages(run, model), None if evaluated_on is None else evaluated_on.source
    summary["next"] = tries(run, record["recipe"], model, recipe.tasks, held_out)
    write_json(run.summary, summary)
    objectives = [one for one in loop.learner.objectives.values() if isinstance(one, Objective)]
    readings = {name: reading for objective in objectives for name, reading in objective.readings().items()}
    chosen = None
    if loop.curator is not None and loop.step:
        chosen = extremes(loop.curator, loop.plan)
    write_report(run.report, summary, rows, subject, model.architecture, held_out, before, readings, chosen)
    return summary


def skipped_advice(skipped: int, steps: int) -> str | None:
    """What to do where too many steps were skipped; None where they were few."""
    if skipped <= MANY_SKIPPED * steps:
        return None
    return (
        f"{skipped} of {steps} steps were skipped because their loss or gradient was not finite: train again with a "
        "lower --lr, a longer --warmup, or --precision fp32."
    )


def of_run(folder: Path, loop: Loop, recipe: Recipe, model: Model) -> Predictor:
    """The run's model, as its weights stand, to be judged in the run's precision."""
    pretrained = Pretrained.of(
        model,
        loop.plan.pipeline,
        name=str(folder),
        boxes=recipe.boxes,
        tasks=recipe.tasks,
        languages=tuple(dict.fromkeys(code for source in loop.plan.sources for code in source.languages)),
    )
    return Predictor(pretrained, autocast=loop.autocast)


def first_and_last(rows: list[dict[str, Any]], name: str) -> dict[str, float | None]:
    """A loss in its first row, and the mean of the last tenth of its rows, at most 20: one batch's alone is noise.

    Its rows are those that have a number: a term may begin late, and a loss may not be finite.
    """
    values = [row[name] for row in rows if row.get(name) is not None]
    last = values[-min(20, max(1, len(values) // 10)) :]
    return {"first": values[0] if values else None, "last": sum(last) / len(last) if last else None}


def count_parameters(learner: Learner, model: Model | None = None) -> dict[str, int]:
    """Parameters by part of the model (by default the learner's), of objectives, of the EMA teacher, in all."""
    model = model or learner.model
    parts = {name: _count(part) for name, part in model.named_children()}
    heads = set(learner.model.modules())  # whose averages are the model's
    averages = [module for module in learner.modules() if isinstance(module, Ema) and module not in heads]
    teacher = sum(_count(module) for module in averages)
    own = sum(_count(objective) for objective in learner.objectives.values()) + _count(learner.teacher) - teacher
    extra = {"objectives": own, "EMA teacher": teacher}
    total = _count(learner) - _count(learner.model) + _count(model)
    return parts | {name: number for name, number in extra.items() if number} | {"total": total}


def _count(module: nn.Module | None) -> int:
    return 0 if module is None else sum(parameter.numel() for parameter in module.parameters())


def figures(summary: dict[str, Any]) -> dict[str, str]:
    """The figures of a run in words: loss terms first and last, and what held-out examples say."""
    words = {}
    number = summary.get("held_out", {}).get("examples")
    for name, loss in summary["losses"].items():
        if loss["first"] is not None and loss["last"] is not None:
            words[f"{name}, first and last"] = f"{loss['first']:.3f} -> {loss['last']:.3f}"
    for task in QUICK:
        measures = summary.get("held_out", {}).get(task, {})
        for name, value in measures.items():
            if f"{name}_ci95" in measures:
                low, high = measures[f"{name}_ci95"]
                words[f"held-out {task}, {name.replace('_', ' ')}"] = (
                    f"{value:.3f} [{low:.3f}, {high:.3f}], n = {number}"
                )
            elif name == "chance_r1":
                words["held-out retrieval, chance"] = f"{value:.3f}"
    for kind, shares in summary.get("curated", {}).items():
        for name, share in shares.items() if len(shares) > 1 else ():
            words[f"selected by {kind}, {name}"] = (
                f"{share['chosen']:.3f} of the selected examples, {share['seen']:.3f} of all"
            )
    if broken := summary["skipped_examples"]:
        words["left out, each time that it was read"] = ", ".join(f"{reason}: {n}" for reason, n in broken.items())
    words["training time"] = f"{summary['training_seconds'] / 60:.1f} min, {summary['images_per_second']:.0f} images/s"
    return words
