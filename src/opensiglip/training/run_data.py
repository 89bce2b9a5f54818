"""What a run reads: its sources, the held-out split, and the steps that they make."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from opensiglip.data.example import Source
from opensiglip.data.sources.registry import open_source, with_box_format
from opensiglip.data.sources.subset import Subset, split_off
from opensiglip.data.weighting.file import read_weights
from opensiglip.data.weighting.languages import parse_languages, parse_rule, weigh_by_size, weigh_languages
from opensiglip.data.weighting.sources import weigh
from opensiglip.errors import UserError
from opensiglip.training.config import TrainConfig
from opensiglip.training.continued import Origin, origin
from opensiglip.training.held_out import HeldOut
from opensiglip.training.record import fingerprints, weights_digests
from opensiglip.training.remembered import Memory
from opensiglip.training.resolve import Job


@dataclass(frozen=True)
class Schedule:
    """The steps of a run: `steps` of the schedule, of which `begin` lie in the run that it continues."""

    steps: int
    begin: int = 0
    stretch: float = 1.0  # steps taken for each step of the schedule
    origin: Origin | None = None


@dataclass(frozen=True)
class Data:
    """Sources, what the run is evaluated on at its end and while it trains (on the main process), steps."""

    sources: list[Source]
    held_out: HeldOut | None
    judged: HeldOut | None
    schedule: Schedule
    kept: list[int] | None = None  # rows of the first source that are trained on; None: all

    def trained_on(self, sources: Sequence[Source]) -> list[Source]:
        """These sources without what is set aside."""
        return trained_on(sources, self.kept)


def trained_on(sources: Sequence[Source], kept: list[int] | None) -> list[Source]:
    """Sources, of the first of them only the rows `kept`; None: all."""
    first, *others = sources
    return [first if kept is None else Subset(first, kept), *others]


def open_data(job: Job, accelerator: Accelerator) -> Data:
    """Open the sources and the held-out split; the main process notes the data's fingerprints. Raises UserError."""
    config, frame = job.config, job.recipe.frame
    check_batch(config, frame.batch_multiple, accelerator.num_processes)
    languages, language_weights = parse_languages(config.languages)
    specs, cache = with_box_format(config.data, config.box_format), config.cache_gb
    sources = [open_source(spec, languages=languages, pixels=frame.pixels, cache_gb=cache) for spec in specs]
    for source, file in zip(sources, config.example_weights, strict=bool(config.example_weights)):
        if file != "none":
            source.example_weights = read_weights(Path(file), source)
    weigh_languages(sources, language_weights)
    if (power := parse_rule(config.language_weights)) is not None:
        weigh_by_size(sources, power)
    if config.data_weights is not None:
        weigh(sources, config.data_weights)
    kept, aside = split_off(sources[0], config.set_aside) if config.set_aside else (None, [])
    schedule = schedule_of(job, sum(source.epoch_rows for source in trained_on(sources, kept)))
    held_out, judged = None, None
    if accelerator.is_main_process:
        job.record["fingerprints"] = fingerprints(sources)
        job.record["example_weights"] = weights_digests(sources)
        memory = Memory(config.features_folder / "judged" if config.features_gb else None)
        if config.held_out:
            source = open_held_out(config, specs[0], languages, frame.pixels)
            held_out = HeldOut(source, config.held_out, sources[0], memory)
        judged = HeldOut(Subset(sources[0], aside), len(aside), sources[0], memory) if aside else held_out
    return Data(sources, held_out, judged, schedule, kept)


def check_batch(config: TrainConfig, multiple: int, ranks: int) -> None:
    """Raises UserError where ranks and parts do not divide the batch."""
    unit = ranks * config.accumulate * multiple
    mends = near_batch(config.batch_size, unit), "give another --filter, such as 0.5 or 0.75"
    sizes = ("--batch-size", config.batch_size), ("the super-batch of", config.super_batch)
    for (flag, size), mend in zip(sizes, mends, strict=True):
        if size % unit:
            halves = " x 2 halves" if multiple > 1 else ""
            raise UserError(
                f"{flag} {size} is not divisible by {ranks} ranks x --accumulate {config.accumulate}{halves}; {mend}."
            )


def near_batch(size: int, unit: int) -> str:
    """The flags that give a batch of whole parts, nearest to `size`."""
    below, above = size // unit * unit, -(-size // unit) * unit
    return f"give --batch-size {' or '.join(str(one) for one in dict.fromkeys((below, above)) if one)}"


def schedule_of(job: Job, examples: int) -> Schedule:
    """Steps as given, or as many as the epochs take; where a run is continued, from which on. Raises UserError."""
    config = job.config
    steps = config.steps or max(1, math.ceil((config.epochs or 1.0) * examples / config.super_batch))
    if config.continue_from is None:
        return Schedule(steps)
    before = origin(config.continue_from, job.recipe.continuation.share)
    begin = round(before.progress * steps)
    if begin == steps:
        raise UserError(
            f"--continue-from {config.continue_from} is at the end of training; name an earlier checkpoint."
        )
    return Schedule(steps, begin, job.recipe.continuation.stretch, before)


def open_held_out(config: TrainConfig, spec: str, languages: Sequence[str] | None, pixels: int) -> Source:
    """The held-out split of the first source. Raises UserError where it has none."""
    try:
        return open_source(spec, split="val", languages=languages, pixels=pixels, cache_gb=config.cache_gb)
    except UserError as error:
        reason = str(error).partition(";")[0]
        raise UserError(
            f"--held-out {config.held_out}: {reason}; give --held-out 0 to train without a final evaluation."
        ) from error
