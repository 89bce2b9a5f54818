"""`train --dry-run`: everything before the first step, and a timed step of each stage; nothing is written."""

import shutil
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from opensiglip.checkpoints.formats.own import described, read_pipeline
from opensiglip.checkpoints.manifest import sound
from opensiglip.checkpoints.run_folder import RunFolder
from opensiglip.data.loader import Steps
from opensiglip.disk import writable
from opensiglip.distributed import world
from opensiglip.errors import UserError
from opensiglip.training.assemble import Opened, assemble
from opensiglip.training.build import first_pipeline
from opensiglip.training.config import TrainConfig
from opensiglip.training.feature_cache import Frozen, gigabytes
from opensiglip.training.loop import Loop
from opensiglip.training.optimizers.make import state_bytes
from opensiglip.training.planning.plan import gib
from opensiglip.training.record import check
from opensiglip.training.resolve import resolve
from opensiglip.training.stages import stage_starts, tokens_read
from opensiglip.types import Batch


@dataclass(frozen=True)
class Stage:
    """Steps first..last-1, in which the same objectives compute; seconds of one, and of making its batch."""

    first: int
    last: int
    terms: tuple[str, ...]
    loss: float | None  # of the first of them; None: not finite
    seconds: float
    reading: float
    images: int  # of a step
    batch: Batch
    skipped: Counter[str]

    def wall(self, workers: int) -> float:
        """Seconds of all its steps: data workers read while a step computes, without them a step waits."""
        each = max(self.seconds, self.reading / workers) if workers else self.seconds + self.reading
        return (self.last - self.first) * each


def dry_run(recipe: str, **keywords: Any) -> str:
    """Describe in lines what `train` with the same keywords would do. Raises UserError as `train` does.

    It opens the data, trains the tokenizer, builds the networks and takes two steps of each stage in memory and
    times the second. Remote shards are cached on disk, as in a run; the folder of the run is not touched.
    """
    if world()[1] > 1:
        raise UserError(
            "--dry-run runs in one process; leave --ranks and the launcher out (`opensiglip plan` has ranks)."
        )
    job = resolve(recipe, keywords)
    config, folder = job.config, job.config.out
    writable(folder)
    opened = Opened.of(job)
    data, precision = opened.data, opened.precision
    check(folder, job.record, resume=config.resume, changed=config.changed)
    saved = sound(RunFolder(folder)) if config.resume else None
    if saved is None:
        pipeline = first_pipeline(job, data.sources, data.schedule.origin)
    else:
        pipeline = read_pipeline(described(saved))
    loop, lines = assemble(opened, pipeline, saved, features=False)
    lines = [f"dry run     nothing is written to {folder}", *lines]
    learner, sources = loop.learner, data.trained_on(data.sources)
    frozen = Frozen.of(learner.model, job.recipe)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    size = gigabytes(learner.model, job.recipe, sources, frozen, dtype) if frozen.images or frozen.texts else None
    begin, last = loop.step, loop.last
    stages = [timed(loop, first, end) for first, end in bounds_of(loop)]
    if not stages:
        return "\n".join([*lines, f"time        nothing is left to train: all {last} steps are done"])
    lines += batch_lines(stages[0].batch)
    if left_out := sum((stage.skipped for stage in stages), Counter[str]()):
        reasons = ", ".join(f"{reason}: {count}" for reason, count in left_out.most_common())
        lines.append(f"left out    of the examples of these batches, {reasons}")
    lines += [stage_line(stage, job.recipe.architecture.patch) for stage in stages]
    lines.append(time_line(stages, loop.workers, last - begin))
    if size is not None:
        place = config.features_folder
        lines.append(
            f"features    the run first writes those of {size:.2f} GB of frozen towers' states that are not in"
        )
        lines.append(f"            {place}; steps then take less than was timed here, with the towers in them")
    return "\n".join([*lines, *write_lines(loop, config)])


def bounds_of(loop: Loop) -> Iterator[tuple[int, int]]:
    """First and last step of each stage that lies before the loop."""
    starts = stage_starts(loop.learner.objectives.values(), loop.plan.starts)
    firsts = sorted({loop.step, *(bisect_left(range(loop.last), share, key=loop.progress) for share in starts)})
    firsts = [first for first in firsts if loop.step <= first < loop.last]
    yield from zip(firsts, [*firsts[1:], loop.last][: len(firsts)], strict=True)


def timed(loop: Loop, first: int, last: int) -> Stage:
    """Take the stage's first step twice, logged and saved nowhere."""
    steps = Steps(loop.plan)
    _ = steps[first]  # this one also opens files and imports what draws
    began = time.perf_counter()
    batch = steps[first]
    reading, loop.step = time.perf_counter() - began, first
    terms = loop.activate(first)
    loop.learner.start_teachers(terms)
    wrapped = loop.wrap()
    loss = loop.train_step(wrapped, batch)[0]["loss"]  # this one also allocates
    began = time.perf_counter()
    loop.train_step(wrapped, batch)  # ends with numbers on the host, so the device is done
    seconds = time.perf_counter() - began
    names = tuple(name for name in loop.learner.objectives if name in terms)
    images = loop.plan.step_slice(first).size
    return Stage(first, last, names, loss, seconds, reading, images, batch.parts[0], batch.skipped)


def batch_lines(batch: Batch) -> list[str]:
    """Name, dtype and shape of each field of a batch, or of the first of its parts."""
    total = sum(field.nbytes for field in batch.values())
    said = [f"batch       {len(batch)} fields, {total / 1e6:.1f} MB (of the first part, with --accumulate)"]
    return said + [
        f"            {name} {str(field.dtype).removeprefix('torch.')} {list(field.shape)}"
        for name, field in batch.items()
    ]


def stage_line(stage: Stage, patch: int) -> str:
    """Its steps, its terms, its tokens, its times."""
    loss = "not finite" if stage.loss is None else f"{stage.loss:.3f}"
    return (
        f"stage       steps {stage.first} to {stage.last}: {', '.join(stage.terms)}; "
        f"{tokens_read(stage.batch, patch)}; loss {loss}, {stage.seconds:.3f} s a step "
        f"({stage.images / stage.seconds:.4g} images/s), {stage.reading:.3f} s to make its batch in one process"
    )


def time_line(stages: Sequence[Stage], workers: int, steps: int) -> str:
    """The whole run's time, by the timed steps."""
    seconds = sum(stage.wall(workers) for stage in stages)
    return (
        f"time        {seconds / 60:.1f} min for {steps} steps, by one whole step of each stage (the second of two) as "
        f"timed here, and {workers} data worker(s); evaluations and checkpoints come on top"
    )


def write_lines(loop: Loop, config: TrainConfig) -> list[str]:
    """What the run's folder will hold, and what its disk has."""
    run, learner = RunFolder(loop.folder), loop.learner
    model = sum(weights.nbytes for weights in learner.model.parameters())
    state = sum(weights.nbytes for weights in learner.state_dict().values())
    checkpoint = state + state_bytes(loop.optimizer)
    stays = config.keep_last + len(config.keep) + (config.keep_best is not None)
    place = next(parent for parent in (loop.folder, *loop.folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    few = ", too little: give another --out" if free < (stays + 1) * checkpoint + model else ""
    return [
        f"writes      {run.config}, {run.metrics}, {run.start}",
        f"            {run.checkpoints}: {gib(checkpoint)} each, every {config.save_every} steps; {stays} stay, "
        f"so {gib((stays + 1) * checkpoint)} at most",
        f"            {run.model}: {gib(model)}; {run.summary}, {run.report}",
        f"            the disk has {gib(free)} free{few}",
    ]
