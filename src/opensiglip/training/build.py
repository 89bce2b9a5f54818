"""From a resolved job to a loop that is ready to run, and the run's folder."""

import math
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from opensiglip.checkpoints.fit import Fitted, fit
from opensiglip.checkpoints.formats.own import describe, described, read_pipeline
from opensiglip.checkpoints.manifest import sound, verify
from opensiglip.checkpoints.run_folder import RunFolder
from opensiglip.data.example import Source
from opensiglip.data.loader import DataPlan
from opensiglip.data.text import TextPipeline
from opensiglip.disk import refusals, whole_folder
from opensiglip.distributed import from_first
from opensiglip.models.model import Model
from opensiglip.recipes import Recipe
from opensiglip.training.accelerator import make_accelerator
from opensiglip.training.best import Best
from opensiglip.training.checkpoint import set_aside, sweep
from opensiglip.training.continued import Origin, take_over
from opensiglip.training.curation.build import curator
from opensiglip.training.feature_cache import with_features
from opensiglip.training.finish import of_run
from opensiglip.training.held_out import HeldOut
from opensiglip.training.learner import Learner
from opensiglip.training.lock import held
from opensiglip.training.loop import Loop
from opensiglip.training.memory import keep_freed_memory
from opensiglip.training.optimizers.make import make
from opensiglip.training.planning.check import memory_line
from opensiglip.training.precision import autocast
from opensiglip.training.pretrained_towers import frozen_by_default
from opensiglip.training.record import (
    check,
    claim,
    differences,
    hyper_parameters,
    stored,
    write_record,
)
from opensiglip.training.resolve import Job
from opensiglip.training.run_data import Schedule, open_data
from opensiglip.training.sharding import hollow, shard
from opensiglip.training.start import new_pipeline, set_trainable, start_line, tower_parameters
from opensiglip.training.startup import few_held_out, startup_lines


@dataclass(frozen=True)
class Built:
    """A run that is ready: its loop, and on the main process what it is evaluated on."""

    loop: Loop
    held_out: HeldOut | None


def build(job: Job, until_end: ExitStack) -> Built:
    """Open the data, make networks and optimizer, claim and lock the folder until the end, print the start-up lines.

    Raises UserError, before anything is written, on what does not fit together.
    """
    config, recipe, folder = job.config, job.recipe, job.config.out
    accelerator, precision, why = make_accelerator(config.precision, config.trackers, folder)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    found = open_data(job, accelerator)
    sources, held_out, schedule = found.sources, found.held_out, found.schedule
    curating = curator(config, recipe, sources, accelerator.device, autocast(precision, accelerator.device))
    saved, run = None, RunFolder(folder)
    need = "not estimated (--no-memory-check)"
    if accelerator.is_main_process:
        check(folder, job.record, resume=config.resume, changed=config.changed)
        first = None if config.resume else first_pipeline(job, sources, schedule.origin)
        claim(folder)
        until_end.enter_context(held(run))
        sweep(run)
        saved = sound(run) if config.resume else None
        if saved is None:
            if config.resume:
                print(f"resume      {folder} has no checkpoint yet: it begins again", flush=True)
            write_start(job, first or first_pipeline(job, sources, schedule.origin))
        else:
            set_aside(run, saved)
        if config.memory_check and recipe.architecture.foreign is None:
            pipeline = read_pipeline(run.start if saved is None else described(saved))
            plan = data_plan(job, accelerator, sources, pipeline, schedule)
            need = memory_line(job, plan, accelerator.device, precision)
    saved = from_first(saved)

    set_seed(config.seed)
    pipeline = read_pipeline(run.start if saved is None else described(saved))
    learner, fitted = build_learner(job, pipeline)
    accelerator.init_trackers("opensiglip", config=hyper_parameters(job.record, folder))
    read = recipe if curating is None else replace(recipe, fields=[*recipe.fields, *curating.fields])
    read, sources = with_features(
        read,
        learner.model,
        sources,
        pipeline,
        root=config.features_folder,
        limit=config.features_gb,
        accelerator=accelerator,
        precision=precision,
        asked=config.features is not None,
    )
    job = replace(job, recipe=read)
    sources = found.trained_on(sources)
    if config.memory_check and recipe.architecture.foreign is not None and accelerator.is_main_process:
        # Only now: a step that reads features holds no activations of the towers.
        plan = data_plan(job, accelerator, sources, pipeline, schedule)
        need = memory_line(job, plan, accelerator.device, precision)
    skeleton = hollow(learner.model, "meta") if config.shard and accelerator.num_processes > 1 else None
    if skeleton is not None:
        shard(learner, accelerator.device)
    learner = learner.to(accelerator.device)
    loop = build_loop(job, accelerator, learner, fitted, sources, pipeline, schedule)
    loop.skeleton, loop.precision, loop.curator = skeleton, precision, curating
    loop.scaler = torch.amp.GradScaler(accelerator.device.type, enabled=precision == "fp16")
    if found.judged is not None:
        row = found.judged.row
        loop.evaluate = lambda model: row(of_run(folder, loop, recipe, model))
    if saved is not None:
        loop.restore(saved)
    elif schedule.origin is not None:
        resized = take_over(schedule.origin, learner, loop.optimizer)
        text = f"continues   {schedule.origin.checkpoint}; resized: {', '.join(resized) or 'nothing'}"
        accelerator.print(text, flush=True)
    if accelerator.is_main_process:
        write_record(folder, job.record)
    accelerator.print(f"{startup_lines(loop, recipe, why)}\nmemory      {need}", flush=True)
    if held_out is not None and (few := few_held_out(min(held_out.count, len(held_out.source)))):
        accelerator.print(f"small data  {few}", flush=True)
    if job.start is not None and fitted is not None:
        line = start_line(job.start, fitted, config.freeze, config.tower_lr, config.lora)
        accelerator.print(f"start       {line}", flush=True)
    return Built(loop, held_out)


def first_pipeline(job: Job, sources: Sequence[Source], before: Origin | None) -> TextPipeline:
    """The text pipeline of a run that begins: a new one, or that of the run that it continues. Raises UserError."""
    if before is None:
        return new_pipeline(job.start, job.recipe, sources, job.config.tokenizer, job.config.vocabulary)
    for difference in differences(stored(before.run), job.record):
        print(f"changed: {difference}", flush=True)
    verify(before.checkpoint)
    return read_pipeline(described(before.checkpoint))


def write_start(job: Job, pipeline: TextPipeline) -> None:
    """Write what every rank begins by: text pipeline, box format and networks."""
    start = RunFolder(job.config.out).start
    with refusals(start, "make room and start the run again as it is"), whole_folder(start) as part:
        describer(job.recipe, pipeline)(part)


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
    if config.checkpointing:
        model.checkpoint_activations()
    return Learner.of(model, recipe, pipeline), fitted


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
            tower_parameters(fitted),
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
