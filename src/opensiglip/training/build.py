"""A run that is ready: its folder claimed, its loop assembled, its start-up lines printed."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from opensiglip.checkpoints.formats.own import described, read_pipeline
from opensiglip.checkpoints.manifest import sound, verify
from opensiglip.checkpoints.run_folder import RunFolder
from opensiglip.data.example import Source
from opensiglip.data.text import TextPipeline
from opensiglip.disk import refusals, whole_folder
from opensiglip.distributed import from_first
from opensiglip.models.model import Model
from opensiglip.training.assemble import Opened, assemble, describer
from opensiglip.training.checkpoint import set_aside, sweep
from opensiglip.training.continued import Origin
from opensiglip.training.finish import of_run
from opensiglip.training.held_out import HeldOut
from opensiglip.training.lock import held
from opensiglip.training.loop import Loop
from opensiglip.training.record import (
    check,
    claim,
    differences,
    hyper_parameters,
    stored,
    write_record,
)
from opensiglip.training.resolve import Job
from opensiglip.training.start import new_pipeline
from opensiglip.training.tracked import show


@dataclass(frozen=True)
class Built:
    """A run that is ready: its loop, and on the main process what it is evaluated on."""

    loop: Loop
    held_out: HeldOut | None


def build(job: Job, until_end: ExitStack) -> Built:
    """Open the data, claim and lock the folder until the end, make networks and optimizer, print the start-up lines.

    Raises UserError, before the folder is made, on what does not fit together.
    """
    config, folder, opened = job.config, job.config.out, Opened.of(job)
    accelerator, data = opened.accelerator, opened.data
    saved, run = None, RunFolder(folder)
    if accelerator.is_main_process:
        check(folder, job.record, resume=config.resume, changed=config.changed)
        first = None if config.resume else first_pipeline(job, data.sources, data.schedule.origin)
        claim(folder)
        until_end.enter_context(held(run))
        sweep(run)
        saved = sound(run) if config.resume else None
        if saved is None:
            if config.resume:
                print(f"resume      {folder} has no checkpoint yet: it starts again", flush=True)
            write_start(job, first or first_pipeline(job, data.sources, data.schedule.origin))
        else:
            set_aside(run, saved)
    saved = from_first(saved)
    pipeline = read_pipeline(run.start if saved is None else described(saved))
    loop, lines = assemble(opened, pipeline, saved)
    accelerator.init_trackers("opensiglip", config=hyper_parameters(job.record, folder))
    if data.judged is not None:
        judged = data.judged

        def evaluate(model: Model) -> dict[str, float]:
            figures = judged.row(of_run(folder, loop, job.recipe, model))
            show(accelerator.trackers, judged.samples, figures, loop.step - 1)
            return figures

        loop.evaluate = evaluate
    if accelerator.is_main_process:
        write_record(folder, job.record)
    accelerator.print("\n".join(lines), flush=True)
    return Built(loop, data.held_out)


def first_pipeline(job: Job, sources: Sequence[Source], before: Origin | None) -> TextPipeline:
    """The text pipeline of a run that begins: a new one, or that of the run that it continues, in the recipe's length.

    Raises UserError.
    """
    if before is None:
        return new_pipeline(job.start, job.recipe, sources, job.config.tokenizer, job.config.vocabulary)
    for difference in differences(stored(before.run), job.record):
        print(f"changed: {difference}", flush=True)
    verify(before.checkpoint)
    return read_pipeline(described(before.checkpoint)).with_length(job.recipe.architecture.length)


def write_start(job: Job, pipeline: TextPipeline) -> None:
    """Write what every rank begins by: text pipeline, box format and networks."""
    start = RunFolder(job.config.out).start
    with refusals(start, "make room and start the run again as it is"), whole_folder(start) as part:
        describer(job.recipe, pipeline)(part)
