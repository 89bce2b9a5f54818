"""The start-up lines of a run: what a wrong run would show at a glance."""

from collections.abc import Sequence

import torch

from opensiglip.data.example import Source
from opensiglip.data.fields.kept_tokens import KeptTokens
from opensiglip.data.loader import DataPlan, Steps
from opensiglip.recipes import Recipe
from opensiglip.training.curation.curator import Curator
from opensiglip.training.finish import count_parameters
from opensiglip.training.loop import Loop
from opensiglip.training.sharding import whole

FEW = 100  # held-out examples, of which each is a hundredth
PLACED = ("aref", "gcap")  # tasks that are about regions


def startup_lines(loop: Loop, recipe: Recipe, why: str) -> str:
    """Device, precision, data, text, batch, parameters and steps, a line each. To be called on all ranks."""
    accelerator, plan, model = loop.accelerator, loop.plan, loop.learner.model
    facts = [source.describe() for source in plan.sources]
    images = sum(len(source) for source in plan.sources)
    texts = sum(sum((fact.get("captions") or {}).values()) for fact in facts)
    regions = sum(int(fact.get("regions") or 0) for fact in facts)
    drawn = max((int(fact.get("objects") or 0) for fact in facts), default=0)  # scenes are composed, not counted
    parameters = ", ".join(f"{name} {number / 1e6:.2f} M" for name, number in count_parameters(loop.learner).items())
    negatives, curator = "", loop.curator
    if model.text is not None:
        bias = float(whole(model.logit_bias.detach()))
        others = Steps(plan).negatives(loop.step)
        if curator is not None:  # as many of what it keeps as of what it chooses from: what it will choose isn't known
            others = others * (curator.keep - 1) / max(1, plan.batch_size - 1)
        average = "" if others == int(others) else " on average"
        negatives = f", {others:.4g} negatives for each image{average}, logit_bias {bias:.2f}"
    sharded = "" if loop.skeleton is None else ", sharded"
    lines = [
        f"device      {accelerator.device}, {accelerator.num_processes} rank(s){sharded}, "
        f"{torch.get_num_threads()} threads, {loop.workers} data worker(s)",
        f"precision   {loop.precision} ({why}); losses in float32",
        f"data        {', '.join(source.name for source in plan.sources)}: {images} images, {texts} texts"
        + (f", {regions} regions" if regions else "")
        + (f", 1 to {drawn} regions in each scene" if drawn else "")
        + f", languages {' '.join(dict.fromkeys(code for s in plan.sources for code in s.languages))}",
        *language_lines(plan.sources),
        *source_lines(plan, plan.step_slice(loop.last).first),
        f"text        vocabulary {len(plan.pipeline)}, length {length_line(plan)}, tasks "
        + (" ".join(recipe.tasks) or "none"),
        f"images      {recipe.frame}",
        *(f"tokens      {field}" for field in plan.fields if isinstance(field, KeptTokens)),
        f"batch       {plan.batch_size if curator is None else curator.keep} images a step{negatives}",
        *([] if curator is None else [f"curated     {curated_line(curator, plan)}"]),
        f"parameters  {parameters}",
        f"steps       {loop.step} -> {loop.last}, {loop.warmup} of warm-up; {plan.step_slice(loop.last).first} images",
    ]
    lines += [
        f"small data  {sentence}" for sentence in small_data(images, plan.batch_size, recipe.tasks, regions + drawn)
    ]
    skipped = sum((source.skipped for source in plan.sources), start=type(plan.sources[0].skipped)())
    if skipped:
        lines.append("left out    " + ", ".join(f"{n} x {reason}" for reason, n in skipped.most_common()))
    return "\n".join(lines)


def curated_line(curator: Curator, plan: DataPlan) -> str:
    """By what examples are selected, of how many, and at which size if it is not that of the step."""
    scored = "" if curator.resolution is None else f", scored at {curator.resolution} × {curator.resolution} pixels"
    return f"by {curator.method} of {plan.batch_size} images a step{scored}"


def length_line(plan: DataPlan) -> str:
    """Tokens of a text."""
    return str(plan.pipeline.policy.length) if plan.lengths is None else plan.lengths.describe("{}")


def source_lines(plan: DataPlan, images: int) -> list[str]:
    """A line a source, where there are several: its share of a run of so many images, its rows and epochs."""
    if len(plan.sources) == 1:
        return []
    found = zip(plan.sources, plan.shares, plan.epochs(images), strict=True)
    return [f"source      {s.name}: {share:.2%}, {len(s)} rows, {epochs:.3g} epochs" for s, share, epochs in found]


def language_lines(sources: Sequence[Source]) -> list[str]:
    """A line for each source whose visits ask for languages by weight: the share of each."""
    return [
        f"languages   {source.name}: "
        + ", ".join(f"{code} {share:.1%}" for code, share in zip(source.languages, shares, strict=True))
        for source in sources
        if (weights := source.language_weights) is not None
        for shares in [[weight / sum(weights) for weight in weights]]
    ]


def small_data(images: int, batch_size: int, tasks: Sequence[str], regions: int) -> list[str]:
    """What is too little of, a sentence each: batches of an epoch, and regions for tasks that are about them."""
    said = []
    if images < 2 * batch_size:
        said.append(
            f"{images} images are {images / batch_size:.2g} batches of {batch_size}: a step sees nearly all of them, "
            "with the same negatives again; give a smaller --batch-size"
        )
    placed = [task for task in tasks if task in PLACED]
    if placed and not regions:
        said.append(f"no regions: {' and '.join(placed)} have nothing to learn from")
    return said


def few_held_out(count: int) -> str | None:
    """What so few held-out examples mean for the figures."""
    if count >= FEW:
        return None
    return f"{count} held-out examples: one of them is {1 / max(1, count):.3f} of a rate"
