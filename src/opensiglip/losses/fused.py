"""Losses as single differentiable operations that compute their gradients in the forward pass, block by block.

Memory is linear in the batch and in the vocabulary. The operations turn autocast off inside (it would round the
sigmoid's float32 sums, an error of 9e-3) and compute no gradients under no_grad.

The backward pass scales those gradients in place, so a second backward pass through the same loss is an error.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor


class TileSizes(NamedTuple):
    """Sizes of the pieces that are computed at once, in bytes of float32 logits."""

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
    """total += a @ b, without a second tensor of that size if the product's dtype is narrower."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
        return
    rows = max(1, tile_sizes(total).strip // (b.shape[1] * total.element_size()))  # large temporaries are fresh memory
    for part, some in zip(total.split(rows), a.split(rows), strict=True):
        part += some @ b


def result(loss: Tensor, inputs: tuple[Tensor, ...], slopes: tuple[Tensor | None, ...], formed: bool) -> Any:
    """The loss, and the gradients in the shapes and dtypes of their inputs; empty if none were computed."""
    if not formed:
        return loss, *(x.new_empty(0) for x in inputs)
    return loss, *(s.to(x.dtype).reshape(x.shape) for x, s in zip(inputs, slopes, strict=True) if s is not None)


def product_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of matrix products: autocast's, or the weight's own.

    It is never fp16: gradients are computed before the loss is scaled, and most of them would underflow.
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

    The op's last argument tells it to compute gradients; `beside` makes empty constants of its arguments.
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
