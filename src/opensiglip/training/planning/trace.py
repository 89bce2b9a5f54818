"""What the operations of a step hold and compute, counted as they are dispatched; on fake tensors none is run."""

import weakref
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from opensiglip.losses import cost
from opensiglip.losses.fused import TileSizes

ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # torch's counter does not know it
ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
OURS = "opensiglip"  # the namespace of the fused losses
REST = "losses"  # what runs in no part
Name = Callable[[str, tuple[Any, ...], Mapping[str, Any]], str]  # of the part around it, and what it is given


@dataclass(frozen=True)
class Peak:
    """Bytes at the moment when most are held, beside weights and optimizer."""

    total: int = 0
    gradients: int = 0
    losses: int = 0  # slopes that fused losses keep, and their blocks


@dataclass
class Flops:
    """FLOP by part of the networks; a product counts 2 for each multiply and add."""

    forward: Counter[str] = field(default_factory=Counter)
    backward: Counter[str] = field(default_factory=Counter)

    def times(self, factor: float) -> "Flops":
        """That many steps' or parts'."""
        return Flops(
            *(Counter({part: round(n * factor) for part, n in c.items()}) for c in (self.forward, self.backward))
        )

    @property
    def total(self) -> int:
        return self.forward.total() + self.backward.total()


class Trace(TorchDispatchMode):
    """Inside, counts bytes that live in new storages, and FLOP of products, by the part that asked for them.

    Products of backward belong to the part whose operation they differentiate. The recomputation of checkpointed layers
    is backward's.
    """

    def __init__(self, *, ranks: int, sizes: TileSizes) -> None:
        """`ranks` of a pairwise loss; `sizes` of the fused losses' blocks."""
        super().__init__()
        self.ranks, self.sizes = ranks, sizes
        self.peak, self.flops = Peak(), Flops()
        self.live = self.gradients = self.losses = 0
        self._storages: set[int] = set()
        self._ours: set[int] = set()  # of them what fused losses made
        self._part = REST
        self._starts: list[int] = [0]  # of parts, as autograd numbers its nodes
        self._parts: list[str] = [REST]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        space = cost.workspace(packet, args, self.sizes)
        ours = func.namespace == OURS
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._hold(tensor, ours)
        self._note(space)
        self._count(packet, args, kwargs or {}, out)
        return out

    @contextmanager
    def inside(self, parts: Mapping[nn.Module, Name]) -> Iterator[None]:
        """Inside, what each of these modules does is its part's, named from the part around it and its inputs."""
        handles = []
        for module, name in parts.items():
            entered: list[str] = []
            enter, leave = partial(self._enter, name, entered), partial(self._leave, entered)
            handles += [module.register_forward_pre_hook(enter, with_kwargs=True), module.register_forward_hook(leave)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def gradient(self, parameter: Tensor) -> None:
        """A parameter's gradient is there now; of a fused loss's slope it may be the same storage."""
        assert parameter.grad is not None
        storage = parameter.grad.untyped_storage()
        self.gradients += storage.nbytes()
        if storage._cdata in self._ours:
            self._ours.discard(storage._cdata)
            self.losses -= storage.nbytes()

    def _enter(
        self, name: Name, entered: list[str], module: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any]
    ) -> None:
        entered.append(self._part)
        self._begin(name(self._part, inputs, named))

    def _leave(self, entered: list[str], module: nn.Module, inputs: Any, out: Any) -> None:
        self._begin(entered.pop())

    def _begin(self, part: str) -> None:
        self._part = part
        if not _node():  # a checkpointed layer's second forward is not numbered on
            self._starts.append(torch.autograd._get_sequence_nr())
            self._parts.append(part)

    def _hold(self, tensor: Tensor, ours: bool) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return
        self._storages.add(key)
        self.live += size
        if ours:
            self._ours.add(key)
            self.losses += size
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.live -= size
        if key in self._ours:
            self._ours.discard(key)
            self.losses -= size

    def _note(self, workspace: int) -> None:
        if self.live + workspace > self.peak.total:
            self.peak = Peak(self.live + workspace, self.gradients, self.losses + workspace)

    def _count(self, packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        number = self._products(packet, args, kwargs, out)
        if not number:
            return
        node = _node()
        if node is None:
            self.flops.forward[self._part] += number
        else:
            place = bisect_right(self._starts, node._sequence_nr()) - 1
            self.flops.backward[self._parts[place]] += number

    def _products(self, packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
        fused = cost.flops(packet, args, self.ranks)
        if fused is not None:
            return fused
        if packet is ATTENTION:
            return int(sdpa_flop_count(args[0].shape, args[1].shape, args[2].shape))
        if packet is ATTENTION_BACKWARD:  # four products; its own recomputation of the scores is no need of the step
            return 2 * int(sdpa_flop_count(args[1].shape, args[2].shape, args[3].shape))
        formula = flop_registry.get(packet)
        return 0 if formula is None else int(formula(*args, **kwargs, out_val=out))


def _node() -> Any:
    """The node of the graph that backward is at; None in forward."""
    return torch._C._current_autograd_node()
