"""The large losses as single differentiable operations whose gradients are formed in forward, block by block.

`sigmoid_loss` and `softmax_loss` walk a ring of ranks and never hold the global batch; `linear_cross_entropy` never
holds all logits. Memory is linear in the batch and in the vocabulary. Autocast is off inside (it would round the
sigmoid's float32 sums: 9e-3 wrong); no slopes are formed under no_grad.

backward scales those gradients where they lie, so a second backward through the same loss is an error.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from opensiglip.distributed import ring
from opensiglip.losses.equations import cross_entropy_block, sigmoid_block, softmax_slopes, softmax_sums


class Room(NamedTuple):
    """How large the pieces are that are formed at once; bytes of float32 logits."""

    tile: int  # of a pairwise loss
    block: int  # over the vocabulary
    tokens: int  # of a block at least: each block reads and writes the whole gradient of the vocabulary's weights
    strip: int  # of a block, that the softmax passes over at once


MIB = 2**20
CPU = Room(tile=8 * MIB, block=32 * MIB, tokens=128, strip=2 * MIB)  # what is passed over stays in its cache
DEVICE = Room(tile=64 * MIB, block=64 * MIB, tokens=1024, strip=64 * MIB)  # by arithmetic: not measured


def sigmoid_loss(rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor, valid: Tensor) -> Tensor:
    """The pairwise sigmoid loss, *summed* over this rank's valid rows and every rank's valid columns.

    rows, columns [B, D] (row i belongs to column i; normalised by the caller), scale (already exp'ed) and bias of one
    element, valid [B] bool: examples without a text are neither positives nor negatives. Same B on every rank.
    """
    return _ring_sigmoid(rows, columns, scale, bias, valid, torch.is_grad_enabled())[0]


def softmax_loss(rows: Tensor, columns: Tensor, scale: Tensor, valid: Tensor) -> Tensor:
    """-1/2 sum_i (log p(y_i | x_i) + log p(x_i | y_i)), *summed* over this rank's valid examples.    (CLIP, Fig. 3)

    p is the softmax of t x.y over every rank's valid columns, and rows. rows, columns [B, D] (row i belongs to column
    i; normalised by the caller), scale t (already exp'ed) of one element, valid [B] bool. Same B on every rank.
    """
    return _ring_softmax(rows, columns, scale, valid, torch.is_grad_enabled())[0]


def linear_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """sum_m w_m * -log softmax(W h_m + b)[y_m], chunked over tokens.

    hidden [M, D], weight [V, D], bias [V], targets [M] int64, weights [M] float32. Under autocast the products run in
    its dtype. M may be 0: the loss is then 0, with zero gradients.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    return _linear_cross_entropy(hidden, weight, bias, targets, weights, dtype, torch.is_grad_enabled())[0]


@torch.library.custom_op("opensiglip::ring_sigmoid", mutates_args=())
def _ring_sigmoid(
    rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor, valid: Tensor, slopes: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    high = torch.promote_types(rows.dtype, torch.float32)
    x, t, b = rows.to(high), scale.to(high), bias.to(high)
    loss, dt, db = x.new_zeros(()), x.new_zeros(()), x.new_zeros(())
    dx = torch.zeros_like(x) if slopes else x.new_empty(0)

    def visit(block: Tensor, own: bool) -> Tensor | None:
        dy = torch.zeros_like(x) if slopes else None
        for row, column in _tiles(x):
            y, there = block[column, :-1], block[column, -1] > 0
            partners = own and row == column
            part, *grads = sigmoid_block(x[row], y, t, b, valid[row], there, own=partners, slopes=slopes)
            loss.add_(part)
            if dy is not None:
                dx[row] += grads[0]
                dy[column] += grads[1]
                dt.add_(grads[2])
                db.add_(grads[3])
        return dy

    with torch.autocast(rows.device.type, enabled=False):
        dy = ring(torch.cat([columns.to(high), valid[:, None].to(high)], 1), visit)  # a column, and whether it counts
    return _result(loss, (rows, columns, scale, bias), (dx, dy, dt, db), slopes)


@torch.library.custom_op("opensiglip::ring_softmax", mutates_args=())
def _ring_softmax(
    rows: Tensor, columns: Tensor, scale: Tensor, valid: Tensor, slopes: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    high = torch.promote_types(rows.dtype, torch.float32)
    x, y, t, counts = rows.to(high), columns.to(high), scale.to(high), valid[:, None].to(high)
    nothing = x.new_full((len(x),), -torch.inf)
    row_sums, dt = nothing.clone(), x.new_zeros(())
    dx = torch.zeros_like(x) if slopes else x.new_empty(0)

    def look(block: Tensor, own: bool) -> Tensor:
        column_sums = nothing.clone()
        for row, column in _tiles(x):
            sums = softmax_sums(x[row], block[column, :-1], t, valid[row], block[column, -1] > 0)
            row_sums[row] = torch.logaddexp(row_sums[row], sums[0])
            column_sums[column] = torch.logaddexp(column_sums[column], sums[1])
        return column_sums

    def pull(block: Tensor, own: bool) -> Tensor:
        dy = torch.zeros_like(x)
        for row, column in _tiles(x):
            z, there, sums = block[column, :-2], block[column, -2] > 0, block[column, -1]
            partners = own and row == column
            grads = softmax_slopes(x[row], z, t, valid[row], there, row_sums[row], sums, own=partners)
            dx[row] += grads[0]
            dy[column] += grads[1]
            dt.add_(grads[2])
        return dy

    with torch.autocast(rows.device.type, enabled=False):
        column_sums = ring(torch.cat([y, counts], 1), look, torch.logaddexp)
        assert column_sums is not None
        row_sums, column_sums = (torch.where(valid, sums, 0.0) for sums in (row_sums, column_sums))
        partners = t * (x * y).sum(1)
        loss = torch.where(valid, (row_sums + column_sums) / 2 - partners, 0.0).sum()
        dy = ring(torch.cat([y, counts, column_sums[:, None]], 1), pull) if slopes else None
    return _result(loss, (rows, columns, scale), (dx, dy, dt), slopes)


@torch.library.custom_op("opensiglip::linear_cross_entropy", mutates_args=())
def _linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, weights: Tensor, dtype: torch.dtype, slopes: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    high = torch.promote_types(hidden.dtype, torch.float32)
    loss = torch.zeros((), dtype=high, device=hidden.device)
    dh, dw, db = (torch.zeros_like(x, dtype=high) if slopes else x.new_empty(0) for x in (hidden, weight, bias))
    w, c = weight.to(dtype), bias.to(high)
    room, row = _room(hidden), weight.shape[0] * torch.finfo(high).bits // 8  # bytes of a token's logits
    chunk = max(1, min(len(hidden), max(room.tokens, room.block // row)))
    strip = max(1, room.strip // row)
    block = torch.empty(chunk, weight.shape[0], dtype=dtype, device=hidden.device)  # used again: fresh memory is slow
    with torch.autocast(hidden.device.type, enabled=False):
        for at in range(0, len(hidden), chunk):
            here = slice(at, at + chunk)
            h = hidden[here].to(dtype)
            narrow = block[: len(h)]  # [chunk, V], the logits and then their slopes
            torch.mm(h, w.T, out=narrow)
            rows = zip(*(x.split(strip) for x in (narrow, targets[here], weights[here].to(high))), strict=True)
            for some, wanted, counts in rows:
                logits = some.to(high).add_(c)  # the softmax is taken in float32 (float64 if given)
                part, *slope = cross_entropy_block(logits, wanted, counts, slopes=slopes)
                loss += part
                if slopes:
                    db += slope[0].sum(0)
                    if dtype != high:
                        some.copy_(slope[0])
            if slopes:
                torch.mm(narrow, w, out=dh[here]) if dh.dtype == dtype else dh[here].copy_(narrow @ w)
                _add_product(dw, narrow.T, h)
    return _result(loss, (hidden, weight, bias), (dh, dw, db), slopes)


def _room(x: Tensor) -> Room:
    return CPU if x.device.type == "cpu" else DEVICE


def _tiles(x: Tensor) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the logits' tiles, row by row."""
    side = math.isqrt(_room(x).tile // x.element_size())
    parts = [slice(at, at + side) for at in range(0, len(x), side)]
    return ((row, column) for row in parts for column in parts)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, without a second tensor of that size where the product is narrower than the total."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
        return
    rows = max(1, _room(total).strip // (b.shape[1] * total.element_size()))  # large temporaries are fresh memory
    for part, some in zip(total.split(rows), a.split(rows), strict=True):
        part += some @ b


def _result(loss: Tensor, inputs: tuple[Tensor, ...], slopes: tuple[Tensor | None, ...], formed: bool) -> Any:
    """The loss, and the slopes in the shapes and dtypes of their inputs; empty where none were formed."""
    if not formed:
        return loss, *(x.new_empty(0) for x in inputs)
    return loss, *(s.to(x.dtype).reshape(x.shape) for x, s in zip(inputs, slopes, strict=True) if s is not None)


def _slopes_are_formed_in_forward(op: torch.library.CustomOpDef, differentiable: int, others: int) -> None:
    """Autograd for an op that returns (loss, gradient of each of its first `differentiable` inputs).

    The op's last argument says whether slopes are formed.
    """

    def fake(*args: Any) -> tuple[Tensor, ...]:
        high = torch.promote_types(args[0].dtype, torch.float32)
        slopes = (torch.empty_like(x) if args[-1] else x.new_empty(0) for x in args[:differentiable])
        return args[0].new_empty((), dtype=high), *slopes

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*output[1:])
        ctx.set_materialize_grads(False)

    def backward(ctx: Any, slope: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        # Detached: what forward saved are outputs of this op, and a gradient must not lead back here. A traced graph
        # (its tensors are of subclasses) may not write into them.
        grads = (g.detach().mul_(slope) if type(g) is Tensor else (g * slope).to(g.dtype) for g in ctx.saved_tensors)
        return tuple(grads) + (None,) * others

    op.register_fake(fake)
    op.register_autograd(backward, setup_context=save)


_slopes_are_formed_in_forward(_ring_sigmoid, differentiable=4, others=2)
_slopes_are_formed_in_forward(_ring_softmax, differentiable=3, others=2)
_slopes_are_formed_in_forward(_linear_cross_entropy, differentiable=3, others=4)
