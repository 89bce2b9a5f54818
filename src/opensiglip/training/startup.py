"""The start-up lines of a run: what a wrong run would show at a glance."""

import torch

from opensiglip.data.loader import DataPlan, Steps
from opensiglip.recipes import Recipe
from opensiglip.training.finish import count_parameters
from opensiglip.training.loop import Loop


def startup_lines(loop: Loop, recipe: Recipe, why: str) -> str:
    """Device, precision, data, text, batch, parameters and steps, a line each."""
    accelerator, plan, model = loop.accelerator, loop.plan, loop.learner.model
    facts = [source.describe() for source in plan.sources]
    images = sum(len(source) for source in plan.sources)
    texts = sum(sum((fact.get("captions") or {}).values()) for fact in facts)
    regions = sum(int(fact.get("regions") or 0) for fact in facts)
    drawn = max((int(fact.get("objects") or 0) for fact in facts), default=0)  # scenes are composed, not counted
    parameters = ", ".join(f"{name} {number / 1e6:.2f} M" for name, number in count_parameters(loop.learner).items())
    negatives = ""
    if model.text is not None:
        bias = float(model.logit_bias.detach())
        others = Steps(plan).negatives(loop.step)
        average = "" if others == int(others) else " on average"
        negatives = f", {others:.4g} negatives for each image{average}, logit_bias {bias:.2f}"
    lines = [
        f"device      {accelerator.device}, {accelerator.num_processes} rank(s), {torch.get_num_threads()} threads, "
        f"{loop.workers} data worker(s)",
        f"precision   {accelerator.mixed_precision} ({why}); losses in float32",
        f"data        {', '.join(source.name for source in plan.sources)}: {images} images, {texts} texts"
        + (f", {regions} regions" if regions else "")
        + (f", 1 to {drawn} regions in each scene" if drawn else "")
        + f", languages {' '.join(dict.fromkeys(code for s in plan.sources for code in s.languages))}",
        *source_lines(plan, plan.step_slice(loop.last).first),
        f"text        vocabulary {len(plan.pipeline)}, length {plan.pipeline.policy.length}, tasks "
        + (" ".join(recipe.tasks) or "none"),
        f"images      {recipe.frame}",
        f"batch       {plan.batch_size} images a step{negatives}",
        f"parameters  {parameters}",
        f"steps       {loop.step} -> {loop.last}, {loop.warmup} of warm-up; {plan.step_slice(loop.last).first} images",
    ]
    skipped = sum((source.skipped for source in plan.sources), start=type(plan.sources[0].skipped)())
    if skipped:
        lines.append("left out    " + ", ".join(f"{n} x {reason}" for reason, n in skipped.most_common()))
    return "\n".join(lines)


def source_lines(plan: DataPlan, images: int) -> list[str]:
    """A line a source, where there are several: its share of a run of so many images, its rows and epochs."""
    if len(plan.sources) == 1:
        return []
    found = zip(plan.sources, plan.shares, plan.epochs(images), strict=True)
    return [f"source      {s.name}: {share:.2%}, {len(s)} rows, {epochs:.3g} epochs" for s, share, epochs in found]
