"""One training step of a recipe's networks on fake tensors: its memory by part and its FLOP, without either."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from opensiglip.losses.fused import CPU, DEVICE
from opensiglip.models.attention import always_fused
from opensiglip.models.decoder import Vocabulary
from opensiglip.models.ema import Ema
from opensiglip.objectives.base import Objective
from opensiglip.training.accumulate import accumulate
from opensiglip.training.config import OptimizerName
from opensiglip.training.learner import Learner
from opensiglip.training.optimizers.make import make, state_bytes
from opensiglip.training.planning.shapes import Shapes
from opensiglip.training.planning.trace import Flops, Name, Trace
from opensiglip.types import Patches, TowerStates

TRACED = 2  # parts at most; further ones hold no more than their features
# Shares of what a step holds that the allocator keeps besides, in holes that fit no tensor. Of glibc's heap 0.33 was
# fitted to measured steps, which kept 0.17 to 0.53; `opensiglip bench plan` prints what it leaves. Of torch's pools on
# GPUs it is a guess.
KEPT = {"cpu": 0.33, "gpu": 0.05}
CONTEXT = {"cpu": 0, "gpu": 600 * 2**20}  # of CUDA and its libraries; not measured here


@dataclass(frozen=True)
class Setting:
    """How a step is taken."""

    kind: Literal["cpu", "gpu"]
    precision: str  # Accelerate's: no, bf16 or fp16
    ranks: int = 1
    parts: int = 1
    checkpointing: bool = False
    shard: bool = False  # weights, gradients and moments over the ranks
    optimizer: OptimizerName = "adamw"


@dataclass(frozen=True)
class Memory:
    """Bytes of a rank at the moment of a step when it holds most."""

    weights: int
    teacher: int
    moments: int
    gradients: int  # all of them, at whichever moment, are `all_gradients`
    activations: int
    losses: int
    batch: int
    buckets: int  # in which ranks exchange gradients
    allocator: int  # what it keeps beyond its tensors
    all_gradients: int

    @property
    def total(self) -> int:
        return (
            self.weights
            + self.teacher
            + self.moments
            + self.gradients
            + self.activations
            + self.losses
            + self.batch
            + self.buckets
            + self.allocator
        )


@dataclass(frozen=True)
class Step:
    """What one step of one rank needs."""

    memory: Memory
    flops: Flops  # of all the rank's examples
    examples: int  # of the rank


def fake_step(learner: Learner, shapes: Shapes, progress: float, setting: Setting) -> Step:
    """Trace a step of `learner`, whose tensors may be of the meta device, at the share `progress` of training.

    Raises what an objective raises that reads values of its tensors (torch's DataDependentOutputException).
    """
    examples = shapes.size // setting.ranks
    parts = min(setting.parts, TRACED)
    trace = Trace(ranks=setting.ranks, sizes=CPU if setting.kind == "cpu" else DEVICE)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(setting.precision)
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        if setting.kind == "gpu":
            stack.enter_context(always_fused())
        faked = fake_copy(learner)
        faked.activate(progress)
        faked.train()
        if setting.checkpointing:
            faked.model.checkpoint_activations()
        trained = [parameter for parameter in faked.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(trace.gradient)
        moments = state_bytes(make(setting.optimizer, faked, 1.0, 0.0))
        batches = [shapes.empty(examples // setting.parts) for _ in range(parts)]
        live = torch.ones(len(faked.terms()))

        def step(*inputs: Any, **named: Any) -> Any:
            with nullcontext() if dtype is None else torch.autocast("cpu", dtype):
                return faked(*inputs, **named)

        with trace, trace.inside(dict(named_parts(faked, examples // setting.parts))):
            accumulate(step, faked, batches, live, lambda loss: loss.backward(), lambda _: nullcontext())
    peak = trace.peak
    wide = sum(size(parameter) for parameter in trained)
    batch = shapes.bytes(examples) + sum(size(x) for x in batches[0].values()) * setting.parts
    averages = [module for module in faked.modules() if isinstance(module, Ema)]
    teacher = held([tensor for average in averages for tensor in tensors(average)])
    memory = Memory(
        weights=held(tensors(faked)) - teacher,
        teacher=teacher,
        moments=moments,
        gradients=peak.gradients,
        activations=peak.total - peak.gradients - peak.losses,
        losses=peak.losses,
        batch=batch,
        buckets=wide if setting.ranks > 1 and not setting.shard else 0,
        allocator=round(KEPT[setting.kind] * peak.total) + CONTEXT[setting.kind],
        all_gradients=wide,
    )
    if setting.shard:
        memory = sharded(memory, setting.ranks, largest_unit(faked))
    return Step(memory, trace.flops.times(setting.parts / parts), examples)


def sharded(memory: Memory, ranks: int, unit: int) -> Memory:
    """With weights, teacher, moments and gradients cut among ranks; two units of weights are whole at a time."""
    return replace(
        memory,
        weights=memory.weights // ranks + 2 * unit,
        teacher=memory.teacher // ranks,
        moments=memory.moments // ranks,
        gradients=memory.gradients // ranks,
        all_gradients=memory.all_gradients // ranks,
    )


def largest_unit(learner: Learner) -> int:
    """Bytes of the largest layer, or table of words."""
    layers = [layer for module in learner.modules() if isinstance(module, nn.ModuleList) for layer in module]
    tables = [module for module in learner.modules() if isinstance(module, nn.Embedding | Vocabulary)]
    units = [layer for layer in layers if not isinstance(layer, Objective)] + tables
    return max(sum(size(parameter) for parameter in unit.parameters()) for unit in units)


def fake_copy(learner: Learner) -> Learner:
    """The same modules over fake tensors of the CPU; weights that are shared stay so. Inside a FakeTensorMode."""
    memo: dict[int, Any] = {}
    for tensor in tensors(learner):
        empty = torch.empty(tensor.shape, dtype=tensor.dtype)
        parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad) if parameter else empty
    return copy.deepcopy(learner, memo)


def tensors(module: nn.Module) -> list[Tensor]:
    """Weights and buffers."""
    return [*module.parameters(), *module.buffers()]


def held(many: list[Tensor]) -> int:
    """Their bytes, of tensors that are the same once."""
    return sum(size(tensor) for tensor in {id(tensor): tensor for tensor in many}.values())


def size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def named_parts(learner: Learner, examples: int) -> Iterator[tuple[nn.Module, Name]]:
    """The modules of the learner with the name of the part that each belongs to, for a batch of so many examples."""
    model = learner.model
    networks = {"text tower": model.text, "decoder": model.decoder, "encoder-decoder": model.pali}
    named: dict[nn.Module, Name] = {}
    for objective in learner.objectives.values():
        named |= dict.fromkeys(objective.modules(), _within(f"{objective.name} head"))
        named.pop(objective)
    for label, network in networks.items():
        if network is not None:
            named |= dict.fromkeys((m for m in network.modules() if m not in named), _within(label))
            if isinstance(getattr(network, "vocabulary", None), nn.Module):
                named[cast(nn.Module, network.vocabulary)] = lambda part, inputs, named: "output layer"
    for label, tower in {"image tower": model.vision, "EMA teacher": learner.teacher}.items():
        if tower is not None:
            named |= dict.fromkeys(tower.modules(), _within(label))
            named[tower] = _views(label, examples)
    yield from named.items()


def _within(label: str) -> Name:
    return lambda part, inputs, named: part if part.startswith(label) else label


def _views(label: str, examples: int) -> Name:
    """An image tower's pass, by how many images of which size it takes for each example, and what it reads of them."""

    def name(part: str, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> str:
        image = inputs[0]
        kept = f", {named['kept'].shape[1]} tokens" if "kept" in named else ""
        if isinstance(image, Patches):
            return f"{label}, {image.values.shape[1]} patches{kept}"
        if isinstance(image, TowerStates):
            return f"{label}, from features"
        masked = " masked" if len(inputs) > 1 else ""
        return f"{label}, {len(image) / examples:g} x {image.shape[-1]} px{masked}{kept}"

    return name
