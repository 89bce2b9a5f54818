"""What the fused losses cost, as formulas of shapes: a dispatcher's counters do not see inside a custom operation."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from opensiglip.losses.cross_entropy import linear_cross_entropy
from opensiglip.losses.fused import TileSizes
from opensiglip.losses.pairwise import sigmoid_loss
from opensiglip.losses.prototypes import prototype_distillation

FLOAT32 = 4  # bytes
BLOCKS = 3  # the logits of a tile, a pointwise function of them, and a temporary
GROUPED = 3  # more of them where pairs of one group are told apart

_ = linear_cross_entropy, prototype_distillation, sigmoid_loss  # importing them registers the operations
SIGMOID, SOFTMAX = torch.ops.opensiglip.ring_sigmoid, torch.ops.opensiglip.ring_softmax
CROSS_ENTROPY = torch.ops.opensiglip.linear_cross_entropy
PROTOTYPES = torch.ops.opensiglip.prototype_distillation
Formula = Callable[[Sequence[Any], int], int]


def flops(operation: Any, args: Sequence[Any], ranks: int) -> int | None:
    """Products of a fused loss in FLOP, its gradients included where it forms them; None of any other operation.

    args: as the operation is called; `ranks`: how many ranks' columns a pairwise loss visits.
    """
    formula = FLOPS.get(operation)
    return None if formula is None else formula(args, ranks)


def workspace(operation: Any, args: Sequence[Any], sizes: TileSizes) -> int:
    """Bytes that a fused loss holds while it runs, beside what it returns; 0 of any other operation."""
    formula = WORKSPACE.get(operation)
    return 0 if formula is None else formula(args, sizes)


def _sigmoid(args: Sequence[Any], ranks: int) -> int:
    product = 2 * args[0].shape[0] ** 2 * ranks * args[0].shape[1]
    return product * (3 if args[-1] else 1)  # logits; the slopes of rows and columns


def _softmax(args: Sequence[Any], ranks: int) -> int:
    product = 2 * args[0].shape[0] ** 2 * ranks * args[0].shape[1]
    positives = 1 if args[4] is not None and args[5] else 0  # the mean of a row's own
    return product * ((4 if args[-1] else 1) + positives)  # logits twice, and the two slopes


def _cross_entropy(args: Sequence[Any], ranks: int) -> int:
    product = 2 * args[0].shape[0] * args[1].numel()
    return product * (3 if args[-1] else 1)


def _prototypes(args: Sequence[Any], ranks: int) -> int:
    student, teacher = (2 * args[at].numel() * args[1].shape[0] for at in (0, 2))
    return student * (3 if args[-1] else 1) + teacher


def _tiles(args: Sequence[Any], sizes: TileSizes) -> int:
    rows, group = args[0], args[4] if len(args) == 7 else args[5]
    side = min(len(rows), math.isqrt(sizes.tile // FLOAT32))
    copies = 2 * rows.numel() * FLOAT32  # scaled rows and columns
    return side**2 * FLOAT32 * (BLOCKS + (0 if group is None else GROUPED)) + copies


def _vocabulary(args: Sequence[Any], sizes: TileSizes) -> int:
    hidden, weight, dtype = args[0], args[1], args[5]
    row = weight.shape[0] * FLOAT32
    chunk = max(1, min(len(hidden), max(sizes.tokens, sizes.block // row)))
    logits = chunk * weight.shape[0] * dtype.itemsize + 2 * max(sizes.strip, row)
    narrowed = weight.numel() * dtype.itemsize if dtype != weight.dtype else 0
    return int(logits + narrowed)


def _of_prototypes(args: Sequence[Any], sizes: TileSizes) -> int:
    """A block's scores in the products' dtype, what its softmaxes hold of a strip, and narrowed weights."""
    student, prototypes, teacher, dtype = args[0], args[1], args[2], args[7]
    views = student.shape[1] + teacher.shape[1]
    row = views * len(prototypes) * FLOAT32
    chunk = min(len(student), max(1, sizes.tokens // views, sizes.block // row))
    narrowed = 2 * prototypes.numel() * dtype.itemsize if dtype != prototypes.dtype else 0
    return int(chunk * row // FLOAT32 * dtype.itemsize + 3 * max(sizes.strip, row) + narrowed)


FLOPS: dict[Any, Formula] = {
    SIGMOID: _sigmoid,
    SOFTMAX: _softmax,
    CROSS_ENTROPY: _cross_entropy,
    PROTOTYPES: _prototypes,
}
WORKSPACE: dict[Any, Callable[[Sequence[Any], TileSizes], int]] = {
    SIGMOID: _tiles,
    SOFTMAX: _tiles,
    CROSS_ENTROPY: _vocabulary,
    PROTOTYPES: _of_prototypes,
}
