"""The pairwise losses with a teacher's probabilities as targets, over a batch on several ranks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from opensiglip.distributed import ring
from opensiglip.losses.equations import softmax_sums
from opensiglip.losses.fused import fuse, result, tiles


def soft_sigmoid_loss(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    bias: Tensor,
    teacher_rows: Tensor,
    teacher_columns: Tensor,
    valid: Tensor,
) -> Tensor:
    """-sum_ij (p_ij log sigma(z_ij) + (1 - p_ij) log sigma(-z_ij)), of this rank's rows and every rank's columns.

    z_ij = t x_i.y_j + b of rows and columns [B, D] (normalised by the caller), scale t (already exp'ed) and bias b of
    one element; p_ij = sigma(u_i.v_j) of the teacher's rows u and columns v [B, E], constants. valid [B] bool: pairs of
    examples without a text do not count. Every rank has the same B.
    """
    slopes = torch.is_grad_enabled()
    return _soft_sigmoid(rows, columns, scale, bias, teacher_rows, teacher_columns, valid, slopes)[0]


def soft_softmax_loss(
    rows: Tensor, columns: Tensor, scale: Tensor, teacher_rows: Tensor, teacher_columns: Tensor, valid: Tensor
) -> Tensor:
    """-1/2 sum_ij (p_ij log softmax_j(z_ij) + q_ij log softmax_i(z_ij)), of this rank's rows and every rank's columns.

    Arguments as for `soft_sigmoid_loss`; p is the softmax of the teacher's logits u_i.v_j over the columns, q over the
    rows.    (open_clip's DistillClipLoss; ACED, arXiv:2411.18674)
    """
    return _soft_softmax(rows, columns, scale, teacher_rows, teacher_columns, valid, torch.is_grad_enabled())[0]


@torch.library.custom_op("opensiglip::soft_sigmoid", mutates_args=())
def _soft_sigmoid(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    bias: Tensor,
    teacher_rows: Tensor,
    teacher_columns: Tensor,
    valid: Tensor,
    slopes: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    high = torch.promote_types(rows.dtype, torch.float32)
    x, t, b, u = rows.to(high), scale.to(high), bias.to(high), teacher_rows.to(high)
    loss, dt, db, dx = x.new_zeros(()), x.new_zeros(()), x.new_zeros(()), torch.zeros_like(x)

    def visit(block: Sequence[Tensor], own: bool) -> Tensor:
        y, v, y_valid = block
        dy = torch.zeros_like(x)
        for row, column in tiles(x):
            counts = valid[row, None] & y_valid[column]
            logits = torch.addmm(b, t * x[row], y[column].T)
            targets = (u[row] @ v[column].T).sigmoid_()
            loss.add_(torch.where(counts, torch.nn.functional.softplus(logits) - targets * logits, 0.0).sum())
            if slopes:
                slope = torch.where(counts, logits.sigmoid_() - targets, 0.0)  # d loss / d logits
                db.add_(slope.sum())
                _push(slope, x[row], y[column], t, dx[row], dy[column], dt)
        return dy

    with torch.autocast(rows.device.type, enabled=False):
        dy = ring([columns.to(high), teacher_columns.to(high), valid], visit)
    return result(loss, (rows, columns, scale, bias), (dx, dy, dt, db), slopes)


@torch.library.custom_op("opensiglip::soft_softmax", mutates_args=())
def _soft_softmax(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    teacher_rows: Tensor,
    teacher_columns: Tensor,
    valid: Tensor,
    slopes: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    high = torch.promote_types(rows.dtype, torch.float32)
    x, t, u, one = rows.to(high), scale.to(high), teacher_rows.to(high), torch.ones_like(scale, dtype=high)
    travelling = [columns.to(high), teacher_columns.to(high), valid]
    by_row = x.new_full((2, len(x)), -torch.inf)  # log-sums of the student's logits, and of the teacher's
    loss, dt, dx = x.new_zeros(()), x.new_zeros(()), torch.zeros_like(x)

    def sums(block: Sequence[Tensor], own: bool) -> Tensor:
        y, v, y_valid = block
        by_column = torch.full_like(by_row, -torch.inf)
        for row, column in tiles(x):
            for at, (left, right, factor) in enumerate(((x, y, t), (u, v, one))):
                of_rows, of_columns = softmax_sums(left[row], right[column], factor, valid[row], y_valid[column])
                by_row[at, row] = torch.logaddexp(by_row[at, row], of_rows)
                by_column[at, column] = torch.logaddexp(by_column[at, column], of_columns)
        return by_column

    def visit(block: Sequence[Tensor], own: bool) -> Tensor:
        y, v, y_valid, y_sums = block
        dy = torch.zeros_like(x)
        for row, column in tiles(x):
            counts = valid[row, None] & y_valid[column]
            logits = (t * x[row]) @ y[column].T
            targets = _both_ways(u[row] @ v[column].T, by_row[1, row], y_sums[1, column], counts)
            loss.sub_((targets * logits).sum())
            if slopes:
                slope = _both_ways(logits, by_row[0, row], y_sums[0, column], counts) - targets
                _push(slope, x[row], y[column], t, dx[row], dy[column], dt)
        return dy

    with torch.autocast(rows.device.type, enabled=False):
        by_column = ring(travelling, sums, torch.logaddexp)
        assert by_column is not None
        by_row, by_column = (torch.where(valid, one_of_two, 0.0) for one_of_two in (by_row, by_column))
        loss.add_((by_row[0] + by_column[0]).sum() / 2)  # as p and q sum to 1
        dy = ring([*travelling, by_column], visit)
    return result(loss, (rows, columns, scale), (dx, dy, dt), slopes)


def _both_ways(logits: Tensor, row_sums: Tensor, column_sums: Tensor, counts: Tensor) -> Tensor:
    """Half of e^(logits - row_sums) + e^(logits - column_sums) [B, M] where `counts`, else 0."""
    both = (logits - row_sums[:, None]).exp_().add_((logits - column_sums).exp_())
    return torch.where(counts, both / 2, 0.0)


def _push(slope: Tensor, x: Tensor, y: Tensor, t: Tensor, dx: Tensor, dy: Tensor, dt: Tensor) -> None:
    """Add the gradients of a tile, by its slope [B, M] at t x.y, to those of rows, columns and scale."""
    pull = slope @ y
    dx += t * pull
    dy += slope.T @ (t * x)
    dt += (pull * x).sum()


fuse(_soft_sigmoid, differentiable=4, others=4)
fuse(_soft_softmax, differentiable=3, others=4)
