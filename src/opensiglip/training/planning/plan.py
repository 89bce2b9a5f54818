"""A run's plan: what each stage needs, how long all of them take, and what to change where it does not fit."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import torch

from opensiglip.data.loader import DataPlan
from opensiglip.errors import UserError
from opensiglip.objectives.base import Pairwise
from opensiglip.training.finish import count_parameters
from opensiglip.training.learner import Learner
from opensiglip.training.planning.machines import Machine
from opensiglip.training.planning.shapes import Shapes, batch_shapes
from opensiglip.training.planning.step import Memory, Setting, Step, fake_step, size
from opensiglip.training.planning.traffic import Traffic, traffic
from opensiglip.training.run_data import near_batch
from opensiglip.training.stages import stage_starts, tokens_read

SECONDS_A_DAY = 86_400
READS_VALUES = "an objective reads values of its tensors ({}), so memory and speed are known only from training itself."


@dataclass(frozen=True)
class Stage:
    """A part of training, from the share `begin` to `end` of it, in which batches hold the same."""

    begin: float
    end: float
    terms: tuple[str, ...]
    steps: tuple[Step, ...]  # one, or one for each kind of batch (NaFlex's budgets)
    read: str  # tokens of an image and a text

    @property
    def memory(self) -> Memory:
        """Of the step that holds most."""
        return max((step.memory for step in self.steps), key=lambda memory: memory.total)

    def flops(self) -> tuple[Counter[str], Counter[str]]:
        """FLOP an example, forward and backward, by part."""
        examples = sum(step.examples for step in self.steps)
        sums = Counter[str](), Counter[str]()
        for step in self.steps:
            sums[0].update(step.flops.forward)
            sums[1].update(step.flops.backward)
        forward, backward = (Counter({part: round(n / examples) for part, n in s.items()}) for s in sums)
        return forward, backward


@dataclass(frozen=True)
class Plan:
    """What a run needs."""

    parameters: dict[str, int]
    stages: tuple[Stage, ...]
    traffic: Traffic
    setting: Setting
    kinds: tuple[Shapes, ...]  # of the last stage's batches

    @property
    def memory(self) -> Memory:
        return max((stage.memory for stage in self.stages), key=lambda memory: memory.total)

    @property
    def flops(self) -> float:
        """FLOP an example, averaged over the stages."""
        return sum((s.end - s.begin) * (f.total() + b.total()) for s in self.stages for f, b in [s.flops()])

    def images_per_second(self, machine: Machine, utilisation: float) -> float:
        """Of all ranks, where products take the share `utilisation` of the machines' peak rate."""
        return self.setting.ranks * machine.rates[self.setting.precision] * utilisation / self.flops


def make_plan(learner: Learner, data: DataPlan, setting: Setting) -> Plan:
    """The plan of a recipe's networks on data. Raises UserError where an objective can't be traced."""
    stages = []
    starts = stage_starts(learner.objectives.values(), data.starts)
    for begin, end in pairwise([*starts, 1.0]):
        kinds = tuple(batch_shapes(data, begin))
        steps = tuple(trace(learner, shapes, begin, setting) for shapes in kinds)
        learner.activate(begin, freeze=False)
        read = tokens_read(kinds[-1].empty(1), learner.model.architecture.patch)
        stages.append(Stage(begin, end, tuple(term.name for term in learner.terms()), steps, read))
    last = stages[-1].steps[0]
    losses = sum(isinstance(term, Pairwise) for term in learner.terms())
    wide = sum(size(p) for p in learner.parameters())
    sent = traffic(
        wide,
        sum(size(p) for p in learner.parameters() if p.requires_grad),
        last.examples,
        learner.model.vision.width + sum(learner.model.architecture.nested),
        losses,
        setting.ranks,
        setting.shard,
    )
    return Plan(count_parameters(learner), tuple(stages), sent, setting, kinds)


def trace(learner: Learner, shapes: Shapes, progress: float, setting: Setting) -> Step:
    """`fake_step`. Raises UserError where an objective can't be traced, or ranks and parts don't divide the batch."""
    if shapes.size % (setting.ranks * setting.parts):
        raise UserError(
            f"--batch-size: {shapes.size} images a step are not divisible by {setting.ranks} ranks x --accumulate "
            f"{setting.parts}; {near_batch(shapes.size, setting.ranks * setting.parts)}."
        )
    try:
        return fake_step(learner, shapes, progress, setting)
    except torch._subclasses.fake_tensor.DataDependentOutputException as error:
        raise UserError(READS_VALUES.format(error.func)) from error


def fullest(learner: Learner, kinds: Sequence[Shapes], setting: Setting) -> Memory:
    """The memory of the last stage, which holds most, with these kinds of batch. Raises UserError as `trace`."""
    last = stage_starts(learner.objectives.values())[-1]
    found = [trace(learner, shapes, last, setting).memory for shapes in kinds]
    return max(found, key=lambda memory: memory.total)


def mends(learner: Learner, kinds: Sequence[Shapes], setting: Setting, room: int) -> list[str]:
    """Flags, each with what a rank then needs, that bring the last stage below `room` bytes."""
    share = min(shapes.size for shapes in kinds) // setting.ranks
    found = []
    lean = replace(setting, checkpointing=True)
    if not setting.checkpointing and (need := fullest(learner, kinds, lean).total) <= room:
        found.append(f"--checkpointing ({gib(need)})")
    for checkpointing in dict.fromkeys([setting.checkpointing, True]):
        parts = setting.parts * 2
        while parts <= share and share % parts == 0:
            need = fullest(learner, kinds, replace(setting, parts=parts, checkpointing=checkpointing)).total
            if need <= room:
                both = "--checkpointing " if checkpointing and not setting.checkpointing else ""
                return [*found, f"{both}--accumulate {parts} ({gib(need)})"]
            parts *= 2
        if found:
            break
    return found


def gib(size: float) -> str:
    """Bytes in words."""
    return f"{size / 2**30:.2f} GiB" if size < 100 * 2**30 else f"{size / 2**30:.0f} GiB"


def to_json(plan: Plan) -> dict[str, Any]:
    """Plain values: bytes, FLOP an example."""
    stages = []
    for stage in plan.stages:
        forward, backward = stage.flops()
        stages.append(
            {
                "begin": stage.begin,
                "end": stage.end,
                "terms": list(stage.terms),
                "read": stage.read,
                "memory": asdict(stage.memory) | {"total": stage.memory.total},
                "flops": {"forward": dict(forward), "backward": dict(backward)},
            }
        )
    return {
        "parameters": plan.parameters,
        "setting": asdict(plan.setting),
        "by_stage": stages,
        "flops_per_example": plan.flops,
        "bytes_sent_per_step": asdict(plan.traffic),
    }
