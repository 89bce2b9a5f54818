"""From what `opensiglip plan` is asked to a plan, as text and as JSON."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from itertools import islice
from typing import Any

import torch

from opensiglip.data.fields.captions import task_words
from opensiglip.data.loader import DataPlan
from opensiglip.data.sources.registry import open_source
from opensiglip.data.text import TextPipeline
from opensiglip.recipes import Recipe, build_recipe, find_recipe
from opensiglip.recipes.growing import check_growth
from opensiglip.recipes.kept_tokens import drop_tokens
from opensiglip.training.planning import report
from opensiglip.training.planning.config import PlanConfig
from opensiglip.training.planning.machines import GIB, machine
from opensiglip.training.planning.networks import meta_learner
from opensiglip.training.planning.plan import SECONDS_A_DAY, Plan, fullest, make_plan, mends, to_json
from opensiglip.training.planning.step import Setting

TEXTS = 2_000  # that the tokenizer is trained on, whose lengths stand for those of a larger one
SMALLER = 8_192  # entries of it at most


def answer(name: str, keywords: Mapping[str, Any], asked: PlanConfig) -> tuple[str, dict[str, Any]]:
    """The plan of a recipe in words, and as plain values. Raises UserError."""
    found, mixed = machine(asked.gpu, asked.precision)
    with torch.device("meta"):  # heads are as large as towers
        recipe = build_recipe(find_recipe(name), keywords)
    check_growth(recipe)
    recipe = drop_tokens(recipe, asked.keep_tokens, full_from=asked.full_from)
    data = data_plan(recipe, asked.data, asked.batch_size, asked.vocabulary)
    setting = Setting(
        found.kind, mixed, asked.gpus, asked.accumulate, asked.checkpointing, asked.shard, asked.optimizer
    )
    learner = meta_learner(recipe, data.pipeline)
    plan = make_plan(learner, data, setting)
    other = replace(setting, checkpointing=not setting.checkpointing)
    without = fullest(learner, plan.kinds, other)
    changes = mends(learner, plan.kinds, setting, found.memory) if plan.memory.total > found.memory else []
    rate = plan.images_per_second(found, asked.utilisation)
    said = [
        f"{name} on {asked.gpus} x {asked.gpu} ({found.memory / GIB:.1f} GiB, "
        f"{found.rates[mixed] / 1e12:.3g} TFLOP/s {'fp32' if mixed == 'no' else mixed}), "
        f"{asked.batch_size} images a step, vocabulary {len(data.pipeline)}",
        report.parameters_text(plan),
        "",
        report.memory_text(plan, [(f"{'with' if other.checkpointing else 'without'} --checkpointing", without)]),
        report.fits_text(plan.memory.total, found.memory, changes),
        "",
        *(report.flops_text(stage) + "\n" for stage in plan.stages),
        *([report.traffic_text(plan)] if asked.gpus > 1 else []),
        report.time_text(plan, rate, asked.utilisation, asked.examples),
    ]
    return "\n".join(said), facts(plan, asked, found.memory, rate, without.total, changes)


def facts(plan: Plan, asked: PlanConfig, room: int, rate: float, other: int, changes: list[str]) -> dict[str, Any]:
    """Plain values: bytes, FLOP an example, images a second, days."""
    days = None if asked.examples is None else asked.examples / rate / SECONDS_A_DAY
    return to_json(plan) | {
        "request": asdict(asked),
        "memory_total": plan.memory.total,
        "memory_of_a_device": room,
        "memory_with_the_other_checkpointing": other,
        "fits": plan.memory.total <= room,
        "fits_with": changes,
        "images_per_second": rate,
        "days": days,
        "gpu_hours": None if days is None else days * 24 * asked.gpus,
    }


def data_plan(recipe: Recipe, specs: tuple[str, ...], batch_size: int, vocabulary: int) -> DataPlan:
    """Data to draw examples of, and a tokenizer with rows for `vocabulary` entries. Raises UserError."""
    sources = [open_source(spec, split="train", languages=None, pixels=recipe.frame.pixels) for spec in specs]
    texts = (text for source in sources for text in islice(source.texts(), TEXTS))
    made = TextPipeline.train(
        texts,
        size=min(vocabulary, SMALLER),
        length=recipe.architecture.length,
        words=task_words(recipe.tasks, recipe.boxes),
    ).with_tokens(recipe.boxes.tokens())
    pipeline = TextPipeline(made.tokenizer, replace(made.policy, vocabulary=vocabulary))
    return DataPlan(
        sources=sources,
        frame=recipe.frame,
        fields=recipe.fields,
        pipeline=pipeline,
        batch_size=batch_size,
        seed=0,
        lengths=recipe.lengths,
    )
