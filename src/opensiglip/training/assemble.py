"""From a resolved job to networks, optimizer and loop: what a run does, and `--dry-run` too."""

import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from opensiglip.checkpoints.fit import Fitted, fit
from opensiglip.checkpoints.formats.own import describe
from opensiglip.checkpoints.run_folder import RunFolder
from opensiglip.data.example import Source
from opensiglip.data.loader import DataPlan
from opensiglip.data.text import TextPipeline
from opensiglip.models import averaged_head
from opensiglip.models.model import Model
from opensiglip.models.towers import Text
from opensiglip.recipes import Recipe
from opensiglip.training.accelerator import make_accelerator
from opensiglip.training.best import Best
from opensiglip.training.continued import Origin, take_over
from opensiglip.training.curation.build import curator, fields_beside, references
from opensiglip.training.curation.curator import Curator
from opensiglip.training.curation.reference import Reference
from opensiglip.training.curation.reference_cache import with_rows
from opensiglip.training.feature_cache import FeatureCache, with_features
from opensiglip.training.head_norms import standardise
from opensiglip.training.learner import Learner
from opensiglip.training.longer_texts import POSITIONS, ShortTexts
from opensiglip.training.loop import Loop
from opensiglip.training.memory import keep_freed_memory
from opensiglip.training.optimizers.make import go_on_training, make
from opensiglip.training.planning.check import memory_line
from opensiglip.training.precision import autocast
from opensiglip.training.pretrained_towers import frozen_by_default
from opensiglip.training.resolve import Job
from opensiglip.training.run_data import Data, Schedule, open_data
from opensiglip.training.sharding import hollow, shard
from opensiglip.training.start import set_trainable, start_line, tower_parameters
from opensiglip.training.startup import few_held_out, startup_lines


@dataclass(frozen=True)
class Opened:
    """What a run reads and computes on; nothing has been written."""

    job: Job
    accelerator: Accelerator
    precision: str
    why: str  # that precision
    data: Data
    curating: Curator | None
    references: list[Reference]

    @classmethod
    def of(cls, job: Job) -> "Opened":
        """Raises UserError on what does not fit together."""
        config = job.config
        accelerator, precision, why = make_accelerator(config.precision, config.trackers, config.out)
        if accelerator.device.type == "cpu":
            keep_freed_memory()
        data = open_data(job, accelerator)
        computing = autocast(precision, accelerator.device)
        scoring = autocast(config.score_precision or precision, accelerator.device)
        curating = curator(config, job.recipe, data.trained_on(data.sources), scoring)
        beside = references(config, job.recipe.frame, accelerator.device, computing)
        return cls(job, accelerator, precision, why, data, curating, beside)


def assemble(
    opened: Opened, pipeline: TextPipeline, saved: Path | None, *, features: bool = True
) -> tuple[Loop, list[str]]:
    """The loop, at the step from which it goes on, and the start-up lines; the first rank's tell the memory.

    saved: the checkpoint that it goes on from. features: write, if there are none, the states of frozen towers to disk
    and read those, begin the record of images, and fit the positions of longer texts; a dry run does none of it.
    Raises UserError, also where memory does not suffice.
    """
    job, accelerator, data = opened.job, opened.accelerator, opened.data
    curating, beside = opened.curating, list(opened.references)
    config, recipe, schedule = job.config, job.recipe, data.schedule
    foreign, need = recipe.architecture.foreign is not None, ""
    if not foreign and accelerator.is_main_process:
        need = memory_of(opened, data.trained_on(data.sources), pipeline)
    set_seed(config.seed)
    learner, fitted = build_learner(job, pipeline)
    short = ShortTexts(pipeline, data.sources) if features else None
    if job.start is not None and saved is None and short is not None:
        grow_texts(learner.model, job.start.model, short, accelerator.device)
    read, sources = recipe, data.sources
    cache = FeatureCache(
        learner.model,
        recipe,
        sources,
        pipeline,
        root=config.features_folder,
        limit=config.features_gb,
        accelerator=accelerator,
        precision=opened.precision,
    )
    visits = round(config.super_batch * (schedule.steps - schedule.begin) * schedule.stretch)
    for place, one in enumerate(opened.references if features else ()):
        beside[place], sources = with_rows(one, sources, visits, cache)
    if more := fields_beside(curating, beside):
        read = replace(recipe, fields=[*recipe.fields, *more])
    if features:
        read, sources = with_features(read, sources, cache, asked=config.features is not None)
    job, sources = replace(job, recipe=read), data.trained_on(sources)
    if foreign and accelerator.is_main_process:
        # Only now: a step that reads features holds no activations of the towers.
        need = memory_of(replace(opened, job=job), sources, pipeline)
    if features and foreign and saved is None and schedule.origin is None and not brings_heads(fitted):
        if not config.shard:
            learner = learner.to(accelerator.device)
        plan = data_plan(job, accelerator, sources, pipeline, schedule)
        standardise(learner.model, plan, autocast(opened.precision, next(learner.parameters()).device))
    skeleton = hollow(learner.model, "meta") if config.shard and accelerator.num_processes > 1 else None
    if skeleton is not None:
        shard(learner, accelerator.device)
    learner = learner.to(accelerator.device)
    loop = build_loop(job, accelerator, learner, fitted, sources, pipeline, schedule)
    loop.skeleton, loop.precision, loop.curator, loop.references = skeleton, opened.precision, curating, beside
    loop.scaler = torch.amp.GradScaler(accelerator.device.type, enabled=opened.precision == "fp16")
    lines = []
    if saved is None and features and accelerator.is_main_process:
        begin_seen(RunFolder(config.out).seen, schedule.origin)
    if saved is not None:
        loop.restore(saved)
    elif schedule.origin is not None:
        taken = take_over(schedule.origin, learner, loop.optimizer, short)
        go_on_training(loop.optimizer)
        fresh = f"; fresh: {', '.join(sorted(taken.new))}" if taken.new else ""
        lines.append(
            f"continues   {schedule.origin.checkpoint}; resized: {', '.join(taken.resized) or 'nothing'}{fresh}"
        )
    lines += [startup_lines(loop, recipe, opened.why), f"memory      {need}"]
    held_out = data.held_out
    if held_out is not None and (few := few_held_out(min(held_out.count, len(held_out.source)))):
        lines.append(f"small data  {few}")
    if job.start is not None and fitted is not None:
        lines.append(f"start       {start_line(job.start, fitted, config.freeze, config.tower_lr, config.lora)}")
    return loop, lines


def brings_heads(fitted: Fitted | None) -> bool:
    """Do the weights that a run starts from include a head's?"""
    return fitted is not None and any(name.startswith(("vision.head.", "text.head.")) for name in fitted.brought)


def begin_seen(path: Path, origin: Origin | None) -> None:
    """The record of images that a run has read, as it begins: none, or that of the run that it continues."""
    before = None if origin is None else RunFolder(origin.run).seen
    path.unlink(missing_ok=True)
    if before is not None and before.is_file():
        shutil.copyfile(before, path)


def memory_of(opened: Opened, sources: Sequence[Source], pipeline: TextPipeline) -> str:
    """What the run needs, in words. Raises UserError where there is too little."""
    if not opened.job.config.memory_check:
        return "not estimated (--no-memory-check)"
    plan = data_plan(opened.job, opened.accelerator, sources, pipeline, opened.data.schedule)
    device, precision = opened.accelerator.device, opened.precision
    return memory_line(opened.job, plan, device, precision, opened.curating, opened.references)


def describer(recipe: Recipe, pipeline: TextPipeline) -> Callable[[Path], None]:
    """Writes into a folder what a model of this recipe and text pipeline is opened by."""
    networks = replace(recipe.architecture, pad_id=pipeline.policy.pad_id)
    return partial(describe, architecture=networks, pipeline=pipeline, boxes=recipe.boxes, tasks=recipe.tasks)


def build_learner(job: Job, pipeline: TextPipeline) -> tuple[Learner, Fitted | None]:
    """Networks and objectives, with the weights that the run starts from; what these brought. Raises UserError."""
    config, recipe = job.config, job.recipe
    model = Model.new(replace(recipe.architecture, pad_id=pipeline.policy.pad_id), len(pipeline))
    fitted = None if job.start is None else fit(model, job.start)
    for objective in recipe.objectives:
        objective.initialise(model, config.batch_size, frozenset() if fitted is None else fitted.brought)
    set_trainable(model, config.freeze or frozen_by_default(recipe), config.lora)
    if config.head_ema:
        averaged_head.add(model)
    if config.checkpointing:
        model.checkpoint_activations()
    learner = Learner.of(model, recipe, pipeline)
    learner.head_ema = config.head_ema
    return learner, fitted


def grow_texts(model: Model, start: Model, short: ShortTexts, device: torch.device) -> None:
    """Where texts are longer than those of the weights that a run starts from: fit their added positions."""
    if isinstance(model.text, Text) and isinstance(start.text, Text):
        positions = model.text.state_dict()[POSITIONS]
        positions.copy_(short.keep(model.text, start.text.state_dict(), positions, device))


def data_plan(
    job: Job, accelerator: Accelerator, sources: Sequence[Source], pipeline: TextPipeline, schedule: Schedule
) -> DataPlan:
    """What this rank reads and how."""
    return DataPlan(
        sources=sources,
        frame=job.recipe.frame,
        fields=job.recipe.fields,
        pipeline=pipeline,
        batch_size=job.config.super_batch,
        seed=job.config.seed,
        rank=accelerator.process_index,
        ranks=accelerator.num_processes,
        parts=job.config.accumulate,
        steps=schedule.steps,
        begin=schedule.begin,
        stretch=schedule.stretch,
        lengths=job.recipe.lengths,
    )


def build_loop(
    job: Job,
    accelerator: Accelerator,
    learner: Learner,
    fitted: Fitted | None,
    sources: Sequence[Source],
    pipeline: TextPipeline,
    schedule: Schedule,
) -> Loop:
    """The loop, with optimizer and data plan, at the first step of the run."""
    config, ranks = job.config, accelerator.num_processes
    cores = torch.get_num_threads() if accelerator.device.type == "cpu" else os.cpu_count() or 2
    plan = data_plan(job, accelerator, sources, pipeline, schedule)
    steps, begin = schedule.steps, schedule.begin
    return Loop(
        accelerator=accelerator,
        learner=learner,
        optimizer=make(
            config.optimizer,
            learner,
            config.lr,
            config.weight_decay,
            tower_parameters(learner.model, fitted),
            config.tower_lr,
            config.betas,
        ),
        plan=plan,
        folder=config.out,
        steps=steps,
        lr=config.lr,
        warmup=config.warmup if config.warmup is not None else steps // 20,
        clip_norm=config.clip_norm,
        workers=config.workers if config.workers is not None else min(8, max(1, cores // ranks - 1)),
        save_every=config.save_every,
        log_every=config.log_every,
        eval_every=config.eval_every,
        describe=describer(job.recipe, pipeline),
        keep_last=config.keep_last,
        best=None if config.keep_best is None else Best(config.keep_best, config.patience),
        keep=frozenset(begin + math.floor((share * steps - begin) * schedule.stretch + 1e-9) for share in config.keep),
        compile=config.compile,
        step=begin,
        images_seen=plan.step_slice(begin).first,
    )
