"""Losses as single differentiable operations whose gradients are formed in forward, block by block.

Memory is linear in the batch and in the vocabulary. The operations turn autocast off inside (it would round the
sigmoid's float32 sums: 9e-3 wrong) and form no slopes under no_grad.

backward scales those gradients in place, so a second backward through the same loss is an error.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor


class TileSizes(NamedTuple):
    """How large the pieces are that are formed at once; bytes of float32 logits."""

    tile: int  # of a pairwise loss
    block: int  # over the vocabulary
    tokens: int  # of a block at least: each block reads and writes the whole gradient of the vocabulary's weights
    strip: int  # of a block, that the softmax passes over at once


MIB = 2**20
CPU = TileSizes(tile=8 * MIB, block=32 * MIB, tokens=128, strip=2 * MIB)  # what is passed over stays in its cache
DEVICE = TileSizes(tile=64 * MIB, block=64 * MIB, tokens=1024, strip=64 * MIB)  # by arithmetic: not measured


def tile_sizes(x: Tensor) -> TileSizes:
    return CPU if x.device.type == "cpu" else DEVICE


def tiles(x: Tensor) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the logits' tiles, row by row."""
    side = math.isqrt(tile_sizes(x).tile // x.element_size())
    parts = [slice(at, at + side) for at in range(0, len(x), side)]
    return ((row, column) for row in parts for column in parts)


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, without a second tensor of that size where the product is narrower than the total."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
        return
    rows = max(1, tile_sizes(total).strip // (b.shape[1] * total.element_size()))  # large temporaries are fresh memory
    for part, some in zip(total.split(rows), a.split(rows), strict=True):
        part += some @ b


def result(loss: Tensor, inputs: tuple[Tensor, ...], slopes: tuple[Tensor | None, ...], formed: bool) -> Any:
    """The loss, and the slopes in the shapes and dtypes of their inputs; empty where none were formed."""
    if not formed:
        return loss, *(x.new_empty(0) for x in inputs)
    return loss, *(s.to(x.dtype).reshape(x.shape) for x, s in zip(inputs, slopes, strict=True) if s is not None)


def product_dtype(weight: Tensor) -> torch.dtype:
    """In which products run: autocast's, or the weight's own.

    Never fp16: the slopes are formed before the loss is scaled, and most of them would be 0 in it.
    """
    kind = weight.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    return weight.dtype if dtype == torch.float16 else dtype


def fuse(
    op: torch.library.CustomOpDef,
    differentiable: int,
    others: int,
    beside: Callable[..., tuple[Tensor, ...]] = lambda *_: (),
) -> None:
    """Autograd for an op that returns (loss, gradient of each of its first `differentiable` inputs, constants).

    The op's last argument says whether slopes are formed; `beside` makes empty constants of its arguments.
    """

    def fake(*args: Any) -> tuple[Tensor, ...]:
        high = torch.promote_types(args[0].dtype, torch.float32)
        slopes = (torch.empty_like(x) if args[-1] else x.new_empty(0) for x in args[:differentiable])
        return args[0].new_empty((), dtype=high), *slopes, *beside(*args)

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*output[1 : 1 + differentiable])
        ctx.set_materialize_grads(False)

    def backward(ctx: Any, slope: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        # Detached: what forward saved are outputs of this op, and a gradient must not lead back here. A traced graph
        # (its tensors are of subclasses) may not write into them.
        grads = (g.detach().mul_(slope) if type(g) is Tensor else (g * slope).to(g.dtype) for g in ctx.saved_tensors)
        return tuple(grads) + (None,) * others

    op.register_fake(fake)
    op.register_autograd(backward, setup_context=save)
