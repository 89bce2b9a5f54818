"""The shapes of a step's batch, from a few examples: drawn as in training; the others are counted."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from opensiglip.data.fields.frame import Geometry
from opensiglip.data.loader import DataPlan, Steps
from opensiglip.types import Batch

DRAWN = 16  # examples whose texts and regions stand for all
ROUND = 64  # steps among which every size of a batch occurs: NaFlex's round is its budgets and one


@dataclass(frozen=True)
class Axis:
    """A dimension's size: `fixed`, and `each` for every example."""

    fixed: float
    each: float

    def of(self, examples: int) -> int:
        return max(0, round(self.fixed + self.each * examples))


@dataclass(frozen=True)
class Shapes:
    """The fields of a batch: each axis as a linear function of the number of examples."""

    size: int  # examples of the global batch
    fields: Mapping[str, tuple[torch.dtype, tuple[Axis, ...]]]

    def empty(self, examples: int) -> Batch:
        """An uninitialised batch as the device holds it, where pixels are float32; of the default device."""
        return {
            name: torch.empty(
                [axis.of(examples) for axis in axes], dtype=torch.float32 if dtype == torch.uint8 else dtype
            )
            for name, (dtype, axes) in self.fields.items()
        }

    def bytes(self, examples: int) -> int:
        """Of a batch as the loader makes it, pixels in uint8."""
        sizes = ((dtype.itemsize, [axis.of(examples) for axis in axes]) for dtype, axes in self.fields.values())
        return sum(int(size * torch.Size(shape).numel()) for size, shape in sizes)


def batch_shapes(plan: DataPlan, progress: float) -> list[Shapes]:
    """The kinds of batch that a run has at the share `progress` of training, of which each is a part of a round.

    There is one, and with NaFlex one for each budget. Raises UserError where no example can be read.
    """
    slices = [plan.frame.step_slice(plan.seed, step, plan.batch_size) for step in range(ROUND)]
    kinds: dict[str, tuple[Geometry, int]] = {f"{one.frame!r} {one.size}": (one.frame, one.size) for one in slices}
    return [_drawn(plan, progress, frame.at(progress), size) for frame, size in kinds.values()]


def _drawn(plan: DataPlan, progress: float, frame: Geometry, size: int) -> Shapes:
    fields, pipeline = [field for field in plan.fields if field.drawn_at(progress)], plan.pipeline_at(progress)
    rows = Steps(plan).rows(0, DRAWN, Counter(), frame, fields, pipeline)

    def collated(times: int) -> Batch:
        batch: Batch = {}
        for index, field in enumerate(fields):
            batch |= field.collate([row[index] for row in rows] * times, pipeline)
        return batch

    once, twice = collated(1), collated(2)
    return Shapes(size, {name: (x.dtype, _axes(x.shape, twice[name].shape)) for name, x in once.items()})


def _axes(once: Sequence[int], twice: Sequence[int]) -> tuple[Axis, ...]:
    """Of a shape with so many examples, and with twice as many of the same."""
    slopes = [(b - a) / DRAWN for a, b in zip(once, twice, strict=True)]
    return tuple(Axis(a - slope * DRAWN, slope) for a, slope in zip(once, slopes, strict=True))
