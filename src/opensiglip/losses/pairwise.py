"""The pairwise losses over a batch on several ranks, by a ring: no rank ever stores the global batch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from opensiglip.distributed import ring
from opensiglip.losses.equations import SameGroup, sigmoid_block, softmax_slopes, softmax_sums
from opensiglip.losses.fused import fuse, result, tiles


def sigmoid_loss(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    bias: Tensor,
    valid: Tensor,
    group: Tensor | None = None,
    *,
    multi_positive: bool = False,
) -> Tensor:
    """The pairwise sigmoid loss, *summed* over this rank's valid rows and every rank's valid columns.

    rows, columns [B, D] (row i belongs to column i; normalised by the caller), scale (already exp'ed) and bias of one
    element, valid [B] bool: examples without a text are neither positives nor negatives. Examples with
    equal numbers in group [B] int64, on any rank, are not negatives of each other; with `multi_positive` the k of them
    are each other's positives instead, with weight 1/k. Every rank has the same B, and all or none have a group.
    """
    return _ring_sigmoid(rows, columns, scale, bias, valid, group, multi_positive, torch.is_grad_enabled())[0]


def softmax_loss(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    valid: Tensor,
    group: Tensor | None = None,
    *,
    multi_positive: bool = False,
) -> Tensor:
    """-1/2 sum_i (log p(y_i | x_i) + log p(x_i | y_i)), *summed* over this rank's valid examples.    (CLIP, Fig. 3)

    p is the softmax of t x.y over every rank's valid columns, and rows. rows, columns [B, D] (row i belongs to column
    i; normalised by the caller), scale t (already exp'ed) of one element, valid [B] bool. Examples with
    equal numbers in group [B] int64 are not candidates for each other; with `multi_positive` they are, and the
    log-probabilities of the k of them are averaged. Every rank has the same B, and all or none have a group.
    """
    return _ring_softmax(rows, columns, scale, valid, group, multi_positive, torch.is_grad_enabled())[0]


@torch.library.custom_op("opensiglip::ring_sigmoid", mutates_args=())
def _ring_sigmoid(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    bias: Tensor,
    valid: Tensor,
    group: Tensor | None,
    multi_positive: bool,
    slopes: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    high = torch.promote_types(rows.dtype, torch.float32)
    x, t, b = rows.to(high), scale.to(high), bias.to(high)
    loss, dt, db = x.new_zeros(()), x.new_zeros(()), x.new_zeros(())
    dx = torch.zeros_like(x) if slopes else x.new_empty(0)
    groups = None if group is None else _Groups(x, group, valid, multi_positive)

    def visit(block: Sequence[Tensor], own: bool) -> Tensor | None:
        y, y_valid, *y_group = block
        dy = torch.zeros_like(x) if slopes else None
        for row, column in tiles(x):
            paired = own and row == column
            part, *grads = sigmoid_block(
                x[row],
                y[column],
                t,
                b,
                valid[row],
                y_valid[column],
                None if groups is None else groups.block(row, y_group[0][column], y_valid[column], paired),
                paired=paired,
                slopes=slopes,
            )
            loss.add_(part)
            if dy is not None:
                dx[row] += grads[0]
                dy[column] += grads[1]
                dt.add_(grads[2])
                db.add_(grads[3])
        return dy

    with torch.autocast(rows.device.type, enabled=False):
        dy = ring([columns.to(high), valid, *([] if group is None else [group])], visit)
    return result(loss, (rows, columns, scale, bias), (dx, dy, dt, db), slopes)


@torch.library.custom_op("opensiglip::ring_softmax", mutates_args=())
def _ring_softmax(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    valid: Tensor,
    group: Tensor | None,
    multi_positive: bool,
    slopes: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    high = torch.promote_types(rows.dtype, torch.float32)
    x, y, t = rows.to(high), columns.to(high), scale.to(high)
    nothing = x.new_full((len(x),), -torch.inf)
    row_sums, dt = nothing.clone(), x.new_zeros(())
    dx = torch.zeros_like(x) if slopes else x.new_empty(0)
    groups = None if group is None else _Groups(x, group, valid, multi_positive)
    positives = torch.zeros_like(x) if multi_positive and groups is not None else y  # the weighted mean of a row's own

    def sums(block: Sequence[Tensor], own: bool) -> Tensor:
        z, z_valid, *z_group = block
        column_sums = nothing.clone()
        for row, column in tiles(x):
            same = None
            if groups is not None:
                same = groups.block(row, z_group[0][column], z_valid[column], own and row == column)
                if multi_positive:
                    positives[row] += same.weight @ z[column]
            by_row, by_column = softmax_sums(x[row], z[column], t, valid[row], z_valid[column], same)
            row_sums[row] = torch.logaddexp(row_sums[row], by_row)
            column_sums[column] = torch.logaddexp(column_sums[column], by_column)
        return column_sums

    def gradients(block: Sequence[Tensor], own: bool) -> Tensor:
        z, z_valid, z_sums, *z_group = block
        dy = torch.zeros_like(x)
        for row, column in tiles(x):
            paired = own and row == column
            grads = softmax_slopes(
                x[row],
                z[column],
                t,
                valid[row],
                z_valid[column],
                row_sums[row],
                z_sums[column],
                None if groups is None else groups.block(row, z_group[0][column], z_valid[column], paired),
                paired=paired,
            )
            dx[row] += grads[0]
            dy[column] += grads[1]
            dt.add_(grads[2])
        return dy

    with torch.autocast(rows.device.type, enabled=False):
        travelling = [] if group is None else [group]
        column_sums = ring([y, valid, *travelling], sums, torch.logaddexp)
        assert column_sums is not None
        row_sums, column_sums = (torch.where(valid, sums, 0.0) for sums in (row_sums, column_sums))
        partners = t * (x * positives).sum(1)
        loss = torch.where(valid, (row_sums + column_sums) / 2 - partners, 0.0).sum()
        dy = ring([y, valid, column_sums, *travelling], gradients) if slopes else None
    return result(loss, (rows, columns, scale), (dx, dy, dt), slopes)


class _Groups:
    """The pairs of this rank's rows and a block's columns that share a group, with their weights as positives."""

    def __init__(self, x: Tensor, group: Tensor, valid: Tensor, multi_positive: bool) -> None:
        """x [B, D] gives the dtype and the tiles; group [B] int64; valid [B] bool."""
        self.dtype, self.group = x.dtype, group
        self.sizes = _group_sizes(x, group, valid).clamp(min=1).to(x.dtype) if multi_positive else None

    def block(self, row: slice, group: Tensor, valid: Tensor, paired: bool) -> SameGroup:
        """The pairs of these rows with columns of `group` [M] and `valid` [M] bool, theirs on the diagonal or not."""
        same = (self.group[row, None] == group) & valid
        if self.sizes is not None:
            return SameGroup(same, same / self.sizes[row, None])
        weight = torch.zeros_like(same, dtype=self.dtype)
        if paired:
            weight.diagonal().copy_(same.diagonal())
        return SameGroup(same, weight)


def _group_sizes(x: Tensor, group: Tensor, valid: Tensor) -> Tensor:
    """The number of valid examples in each row's group over all ranks: [B] int64."""
    sizes = torch.zeros_like(group)

    def count(block: Sequence[Tensor], own: bool) -> None:
        for row, column in tiles(x):
            sizes[row] += ((group[row, None] == block[0][column]) & block[1][column]).sum(1)

    ring([group, valid], count)
    return sizes


fuse(_ring_sigmoid, differentiable=4, others=4)
fuse(_ring_softmax, differentiable=3, others=4)
