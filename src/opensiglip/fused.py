"""The two large losses as single differentiable operations whose gradients are formed in forward, block by block.

`sigmoid_loss` walks a ring of ranks and never holds the global batch; `linear_cross_entropy` never holds all logits.
Autocast is off inside (it would round the sigmoid's float32 sums: 9e-3 wrong); no slopes are formed under no_grad.
"""

import math
from typing import Any

import torch
from torch import Tensor

from opensiglip.distributed import ring
from opensiglip.losses import cross_entropy_block, sigmoid_block

BLOCK_BYTES = 64 * 2**20  # what one block of float32 logits may take


def sigmoid_loss(rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor, valid: Tensor) -> Tensor:
    """The pairwise sigmoid loss, *summed* over this rank's valid rows and every rank's valid columns.

    rows, columns [B, D] (row i belongs to column i; normalised by the caller), scale (already exp'ed) and bias of one
    element, valid [B] bool: examples without a text are neither positives nor negatives. Same B on every rank.
    """
    return _ring_sigmoid(rows, columns, scale, bias, valid, torch.is_grad_enabled())[0]


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
    travelling = torch.cat([columns.to(high), valid[:, None].to(high)], 1)  # a column, and whether it counts
    loss, dx, dt, db = x.new_zeros(()), torch.zeros_like(x), x.new_zeros(()), x.new_zeros(())
    side = math.isqrt(BLOCK_BYTES // x.element_size())
    with torch.autocast(rows.device.type, enabled=False):
        for block, slope, own in ring(travelling):
            if own is None:
                dy = slope[:, :-1]
                break
            for i in range(0, len(x), side):
                for j in range(0, len(x), side):
                    row, column = slice(i, i + side), slice(j, j + side)
                    pairs = valid[row, None] & (block[column, -1] > 0)
                    y = block[column, :-1]
                    part, *grads = sigmoid_block(x[row], y, t, b, pairs, own=own and i == j, slopes=slopes)
                    loss += part
                    if slopes:
                        dx[row] += grads[0]
                        slope[column, :-1] += grads[1]
                        dt += grads[2]
                        db += grads[3]
    return (
        loss,
        dx.to(rows.dtype),
        dy.to(columns.dtype, copy=True),
        dt.to(scale.dtype).reshape(scale.shape),
        db.to(bias.dtype).reshape(bias.shape),
    )


@torch.library.custom_op("opensiglip::linear_cross_entropy", mutates_args=())
def _linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, weights: Tensor, dtype: torch.dtype, slopes: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    high = torch.promote_types(hidden.dtype, torch.float32)
    loss, dh = torch.zeros((), dtype=high, device=hidden.device), torch.zeros_like(hidden)
    dw, db = torch.zeros_like(weight, dtype=high), torch.zeros_like(bias, dtype=high)
    w, c = weight.to(dtype), bias.to(dtype)
    chunk = max(1, BLOCK_BYTES // (weight.shape[0] * torch.finfo(high).bits // 8))
    with torch.autocast(hidden.device.type, enabled=False):
        for at in range(0, len(hidden), chunk):
            here = slice(at, at + chunk)
            part, *grads = cross_entropy_block(
                hidden[here].to(dtype), w, c, targets[here], weights[here].to(high), slopes=slopes
            )
            loss += part
            if slopes:
                dh[here] = grads[0].to(dh.dtype)
                dw += grads[1]
                db += grads[2]
    return loss, dh, dw.to(weight.dtype, copy=True), db.to(bias.dtype, copy=True)


def _slopes_are_formed_in_forward(op: torch.library.CustomOpDef, differentiable: int, others: int) -> None:
    """Autograd for an op that returns (loss, gradient of each of its first `differentiable` inputs)."""

    def fake(*args: Tensor) -> tuple[Tensor, ...]:
        high = torch.promote_types(args[0].dtype, torch.float32)
        return args[0].new_empty((), dtype=high), *(torch.empty_like(x) for x in args[:differentiable])

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*output[1:])
        ctx.set_materialize_grads(False)

    def backward(ctx: Any, slope: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return tuple((slope * g).to(g.dtype) for g in ctx.saved_tensors) + (None,) * others

    op.register_fake(fake)
    op.register_autograd(backward, setup_context=save)


_slopes_are_formed_in_forward(_ring_sigmoid, differentiable=4, others=2)
_slopes_are_formed_in_forward(_linear_cross_entropy, differentiable=3, others=4)
