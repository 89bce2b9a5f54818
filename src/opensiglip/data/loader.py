"""Batches: the global batch of a step is a pure function of (seed, step); rank r of W takes its slice of it."""

import os
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from opensiglip.data.example import Source, reason_of
from opensiglip.data.fields.field import Field, Visit, group_id
from opensiglip.data.fields.frame import Geometry, StepSlice
from opensiglip.data.order import Mixture, order_of, shares_of
from opensiglip.data.seen import image_hash, positions_to_hash, words
from opensiglip.data.size_schedule import SizeSchedule
from opensiglip.data.stats.duplicates import Words
from opensiglip.data.text import TextPipeline
from opensiglip.data.workers import begin_worker, lost_workers
from opensiglip.errors import UserError
from opensiglip.float64 import moved
from opensiglip.types import Batch

VISIT = 1  # what a generator is for; first word of its seed (0: the order)
BROKEN_LIMIT = 0.1  # of the examples read may be broken
BROKEN_PATIENCE = 50  # reads before that share is judged


@dataclass(frozen=True, kw_only=True)
class DataPlan:
    """What a run reads and how: everything a worker needs to make any step's batch."""

    sources: Sequence[Source]
    frame: Geometry
    fields: Sequence[Field]
    pipeline: TextPipeline
    batch_size: int  # examples of the global batch
    seed: int
    rank: int = 0
    ranks: int = 1
    parts: int = 1  # of a rank's slice, for gradient accumulation
    steps: int = 1  # of the schedule: fields begin at a share of it
    begin: int = 0  # the step of it at which this run begins, if it continues another
    stretch: float = 1.0  # how many steps this run takes for each one of the schedule
    lengths: SizeSchedule | None = None  # of texts in tokens, where they grow while training

    @cached_property
    def shares(self) -> list[float]:
        """The share of the stream that each source has."""
        return shares_of(self.sources)

    def epochs(self, images: int) -> list[float]:
        """How often each source has been read once so many images were."""
        return [share * images / rows for share, rows in zip(self.shares, self._epoch_rows, strict=True)]

    @cached_property
    def _epoch_rows(self) -> list[int]:
        return [source.epoch_rows for source in self.sources]

    @cached_property
    def hashed(self) -> int:
        """Positions of the stream whose images are hashed."""
        return positions_to_hash(self.shares, self._epoch_rows)

    def schedule_step(self, step: int) -> float:
        """Where a step stands in the schedule."""
        return self.begin + (step - self.begin) / self.stretch

    def progress(self, step: int) -> float:
        """The share of training that lies before a step."""
        return self.schedule_step(step) / self.steps

    def step_slice(self, step: int) -> StepSlice:
        """A step's part of the endless stream, which a run that continues another reads on where that stood."""
        frame, first, count = self.frame.step_slice(self.seed, step - self.begin, self.batch_size)
        return StepSlice(frame.at(self.progress(step)), self.begin * self.batch_size + first, count)

    def pipeline_at(self, progress: float) -> TextPipeline:
        """The text pipeline of a step at the share `progress` of training."""
        return self.pipeline if self.lengths is None else self._pipelines[self.lengths.at(progress)]

    @cached_property
    def _pipelines(self) -> dict[int, TextPipeline]:
        sizes = () if self.lengths is None else self.lengths.sizes
        return {size: self.pipeline.with_length(size) for size in sizes}

    def facts(self, step: int, images: int) -> dict[str, float | None]:
        """Where there are several sources, epochs of each after so many images; what grows in a step, in its size.

        These are pixels of an image's side and tokens of a text.
        """
        progress, facts = self.progress(step), dict[str, float | None]()
        if len(self.sources) > 1:
            epochs = zip(self.sources, self.epochs(images), strict=True)
            facts = {f"epochs/{source.name}": value for source, value in epochs}
        sides = {"resolution": self.frame.at(progress).pixels} if self.frame.starts else {}
        return facts | sides | ({} if self.lengths is None else {"length": self.lengths.at(progress)})

    @property
    def starts(self) -> set[float]:
        """The shares of training at which batches come to hold something else."""
        sizes = {*self.frame.starts, *(() if self.lengths is None else self.lengths.starts)}
        return sizes | {float(share) for field in self.fields for share in (field.start, field.end)}


@dataclass
class StepBatch:
    """One rank's slice of one step, in parts, and why examples were passed over."""

    parts: list[Batch]
    skipped: Counter[str]
    hashes: Words | None = None  # of its images (data/seen.py), while the sources are read for the first time

    def pin_memory(self) -> "StepBatch":
        """For the loader's pinning thread."""
        return replace(self, parts=[{k: v.pin_memory() for k, v in part.items()} for part in self.parts])


class Steps(Dataset[StepBatch]):
    """Item `step` is that step's batch."""

    def __init__(self, plan: DataPlan) -> None:
        self.plan, self.order = plan, order_of(plan.sources, plan.seed)
        self.starts = [0, *accumulate(len(source) for source in plan.sources)]  # rows of the sources before each

    def __getitem__(self, step: int) -> StepBatch:
        plan, skipped = self.plan, Counter[str]()
        frame, first, count = plan.step_slice(step)
        share = count // plan.ranks
        hashes: list[int] | None = [] if first < plan.hashed else None
        first += plan.rank * share
        progress = plan.progress(step)
        fields, pipeline = [field for field in plan.fields if field.drawn_at(progress)], plan.pipeline_at(progress)
        rows = self.rows(first, share, skipped, frame, fields, pipeline, hashes)
        size = share // plan.parts
        parts: list[Batch] = []
        for at in range(0, share, size):
            batch: Batch = {}
            for index, field in enumerate(fields):
                batch |= field.collate([row[index] for row in rows[at : at + size]], pipeline)
            parts.append(batch)
        return StepBatch(parts, skipped, None if hashes is None else words(hashes))

    def rows(
        self,
        first: int,
        count: int,
        skipped: Counter[str],
        frame: Geometry,
        fields: Sequence[Field],
        pipeline: TextPipeline,
        hashes: list[int] | None = None,
    ) -> list[list[object]]:
        """What each of `fields` draws at `count` positions of the endless stream, a list for each.

        Each image's hash is added to `hashes`.
        """
        places = self._places(first, count)
        self._prepare(places, first, count)
        rows = []
        for at, place in enumerate(places):
            visit, row = self._draw(first + at, place, skipped, frame, fields, pipeline)
            rows.append(row)
            if hashes is not None:
                hashes.append(image_hash(visit.example, visit.image if visit.is_whole else visit.example.image))
        return rows

    def visit(self, position: int, skipped: Counter[str], frame: Geometry) -> Visit:
        """The visit at a position of the endless stream; a broken example's place is taken by the next one."""
        return self._draw(position, self._places(position, 1)[0], skipped, frame, (), self.plan.pipeline)[0]

    def _draw(
        self,
        position: int,
        place: tuple[int, int],
        skipped: Counter[str],
        frame: Geometry,
        fields: Sequence[Field],
        pipeline: TextPipeline,
    ) -> tuple[Visit, list[object]]:
        """A position's visit and what the fields draw of it; whatever goes wrong with a row is that row's."""
        number, local = place
        source = self.plan.sources[number]
        for attempt in range(len(source)):
            index = (local + attempt) % len(source)
            if source.example_weights is not None and not source.example_weights[index]:
                continue
            rng = np.random.default_rng([VISIT, self.plan.seed, position])
            language = draw_language(source, rng)
            try:
                visit = Visit.draw(source.example(index, language), frame, rng, language)
                group, row = group_id(source.group(index)), self.starts[number] + index
                visit = replace(visit, group=group, source=source.name, row=row)
                return visit, [field.draw(visit, rng, pipeline) for field in fields]
            except Exception as error:
                skipped[reason_of(error)] += 1
        raise UserError(f"no example of --data {source.name} can be read; `opensiglip data show` says why.")

    def _prepare(self, places: Sequence[tuple[int, int]], first: int, count: int) -> None:
        """Tell sources that fetch what this step reads, and what a step at its place in the next window will."""
        if not isinstance(self.order, Mixture) or not any(source.fetches for source in self.plan.sources):
            return
        numbers, indices = self.order.find(np.arange(first, first + count), windows=1)
        for number, source in enumerate(self.plan.sources):
            if source.fetches:
                source.prepare([index for one, index in places if one == number])
                source.prepare(indices[numbers == number].tolist())

    def negatives(self, step: int) -> float:
        """How many others of a step's global batch show another image than an example does, on average."""
        _, first, count = self.plan.step_slice(step)
        groups = Counter(self.plan.sources[number].group(index) for number, index in self._places(first, count))
        return count - sum(size * size for size in groups.values()) / count

    def _places(self, first: int, count: int) -> list[tuple[int, int]]:
        """The number of the source that each of `count` positions of the stream falls to, and the index in it."""
        numbers, indices = self.order.find(np.arange(first, first + count))
        return list(zip(numbers.tolist(), indices.tolist(), strict=True))


def draw_language(source: Source, rng: np.random.Generator) -> str | None:
    """One of a source's languages, each as often or by weight; None where it has none."""
    if not source.languages:
        return None
    if source.language_weights is None:
        return source.languages[rng.integers(len(source.languages))]
    ends = np.cumsum(source.language_weights)
    return source.languages[np.searchsorted(ends[:-1], rng.random() * ends[-1], side="right")]


class BrokenLimit:
    """Counts what was read and what was skipped, and stops a run of whose examples too many are broken."""

    def __init__(self, limit: float = BROKEN_LIMIT) -> None:
        self.limit, self.read, self.skipped = limit, 0, Counter[str]()

    def count(self, read: int, skipped: Counter[str]) -> None:
        """Add a step's counts. Raises UserError once more than the limit of what was read is broken."""
        self.read += read
        self.skipped.update(skipped)
        broken = self.skipped.total()
        if broken + self.read >= BROKEN_PATIENCE and broken > self.limit * (broken + self.read):
            reasons = ", ".join(f"{n} x {reason}" for reason, n in self.skipped.most_common(3))
            raise UserError(
                f"{broken} of {broken + self.read} examples read are broken ({reasons}); fix or remove them, "
                "`opensiglip data show` counts them."
            )


def loader(plan: DataPlan, first: int, last: int, workers: int, pin: bool) -> Generator[StepBatch, None, None]:
    """The batches of steps first..last-1, made in `workers` processes (0: in this one), in order."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    steps: DataLoader[StepBatch | str] = DataLoader(
        Told(Steps(plan)),
        batch_size=None,
        sampler=range(first, last),
        num_workers=workers,
        pin_memory=pin,
        prefetch_factor=4 if workers else None,
        worker_init_fn=begin_worker if workers else None,
    )
    with lost_workers():
        for item in steps:
            if isinstance(item, str):
                raise UserError(item)
            yield item


class Told(Dataset[StepBatch | str]):
    """The same batches; a UserError of a data worker comes as its sentence, not as a traceback of two processes."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps

    def __getitem__(self, step: int) -> StepBatch | str:
        try:
            return self.steps[step]
        except UserError as error:
            worker = get_worker_info()
            if worker is None:
                raise
            return f"{str(error).removesuffix('.')} (data worker {worker.id})."


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on the device; pixels, the only uint8 fields, become float32 in [-1, 1] there."""
    there = {name: moved(field, device) for name, field in batch.items()}
    return {
        name: field.float().div_(127.5).sub_(1) if field.dtype == torch.uint8 else field
        for name, field in there.items()
    }
