"""The equations with their gradients ("slopes"): pure functions of tensors; no weights, no ranks, no state.

The large losses are linear maps followed by a pointwise or row-wise log; each gradient costs one
matrix product once the logits are computed. The forward pass therefore computes the gradients block by block, and
nothing of the size of the logits outlives its block. `tests/test_losses.py` compares with the plain autograd forms.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LOG2_E = math.log2(math.e)  # e^x = 2^(x log2 e), torch's powers of two are three times as fast on a CPU


class SameGroup(NamedTuple):
    """The pairs of a block [B, M] that belong to one group, such as one image: they are never negatives.

    Their weights sum to 1 over a row's whole group. Weight 1 on the diagonal only leaves the others out; 1/k on all k
    of them counts each as a positive.
    """

    same: Tensor  # [B, M] bool; false in columns that are not valid
    weight: Tensor  # [B, M], as a positive; 0 where `same` is false


def sigmoid_block(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    bias: Tensor,
    row_valid: Tensor,
    column_valid: Tensor,
    group: SameGroup | None = None,
    *,
    paired: bool,
    slopes: bool,
) -> tuple[Tensor, ...]:
    """-sum_ij log sigma(z_ij (t x_i.y_j + b)), z_ij = 1 if i = j (and `paired`) else -1.    (SigLIP, Sec. 3.2)

    rows [B, D], columns [M, D], scale t and bias b of one element; row_valid [B] and column_valid [M] bool. Returns the
    sum and, with `slopes`, its gradient with respect to rows, columns, scale and bias. With `group`, pairs of one group
    have -weight_ij log sigma(t x_i.y_j + b) instead, whether `paired` or not.

    -log sigma(-u) = softplus(u), and -log sigma(u) = softplus(u) - u: softplus everywhere, less u on the diagonal.
    """
    logits = _logits(rows, columns, scale, bias, column_valid)  # softplus and sigmoid of -inf are 0
    if group is None:
        losses = F.softplus(logits).sum(1)
        if paired:
            losses = losses - torch.where(row_valid, logits.diagonal(), 0.0)
    else:
        terms = F.softplus(logits).mul_(torch.where(group.same, group.weight, 1.0))
        losses = terms.sub_(torch.where(group.same, group.weight * logits, 0.0)).sum(1)
    loss = torch.where(row_valid, losses, 0.0).sum()
    if not slopes:
        return (loss,)
    slope = logits.sigmoid_()  # d loss / d logits, except in rows that are not valid
    if group is not None:
        slope.mul_(torch.where(group.same, group.weight, 1.0)).sub_(group.weight)
    elif paired:
        slope.diagonal().sub_(row_valid.to(slope.dtype))
    counted = row_valid[:, None]
    pull = torch.where(counted, slope @ columns, 0.0)  # [B, D], its product with the rows gives the gradient of t
    db = torch.where(row_valid, slope.sum(1), 0.0).sum()
    return loss, scale * pull, slope.T @ torch.where(counted, scale * rows, 0.0), (pull * rows).sum(), db


def softmax_sums(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    row_valid: Tensor,
    column_valid: Tensor,
    group: SameGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """log sum_j e^(t x_i.y_j) of each row [B] and log sum_i e^(t x_i.y_j) of each column [M], over the valid ones.

    Pairs of one `group` with weight 0 are left out.
    """
    logits = _candidates(rows, columns, scale, row_valid, column_valid, group)
    return logits.logsumexp(1), logits.logsumexp(0)


def softmax_slopes(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    row_valid: Tensor,
    column_valid: Tensor,
    row_sums: Tensor,
    column_sums: Tensor,
    group: SameGroup | None = None,
    *,
    paired: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of -1/2 sum_i (log p(y_i | x_i) + log p(x_i | y_i)) over one block.    (CLIP, Fig. 3)

    p(y_j | x_i) = exp(z_ij - row_sums_i), p(x_i | y_j) = exp(z_ij - column_sums_j), z = t x.y; the sums [B] and [M] are
    `softmax_sums` over *all* columns and rows, finite (any number where a row or column is not valid). Row i's positive
    is column i where `paired`; with `group`, the log-probabilities of its positives are averaged with their weights.
    Returns the gradients with respect to rows, columns and scale.
    """
    logits = _candidates(rows, columns, scale, row_valid, column_valid, group)
    slope = (logits - column_sums).exp_()
    slope.add_(logits.sub_(row_sums[:, None]).exp_()).mul_(0.5)  # d loss / d logits
    if group is not None:
        slope.sub_(torch.where(row_valid[:, None], group.weight, 0.0))
    elif paired:
        slope.diagonal().sub_(row_valid.to(slope.dtype))
    pull = slope @ columns
    return scale * pull, slope.T @ (scale * rows), (pull * rows).sum()


def cross_entropy_block(logits: Tensor, targets: Tensor, weights: Tensor, *, slopes: bool) -> tuple[Tensor, ...]:
    """sum_m sum_k w_mk * -log softmax(z_m)[y_mk] over one block of rows.    (CapPa, Sec. 3, where k is 1)

    logits z [M, V] are overwritten; targets and weights [M], or [M, K] for several targets per row. Returns the sum
    and, with `slopes`, its gradient with respect to z.
    """
    targets, weights = targets.view(len(targets), -1), weights.view(len(targets), -1)
    logits.sub_(logits.amax(-1, keepdim=True))
    hit = logits.gather(1, targets)
    total = logits.mul_(LOG2_E).exp2_().sum(-1, keepdim=True)
    loss = (weights * (total.log() - hit)).sum()
    if not slopes:
        return (loss,)
    slope = logits.mul_(weights.sum(1, keepdim=True) / total)
    slope.scatter_add_(1, targets, -weights)
    return loss, slope


def distillation_block(
    student: Tensor, teacher: Tensor, centre: Tensor, temperature: float, *, slopes: bool
) -> tuple[Tensor, ...]:
    """-sum_nl sum_k p_nk log softmax(z_nl)_k over one block of groups n.    (SILC, Eq. 3; DINO; iBOT on patches)

    p_n = mean_g softmax((t_ng - c) / temperature). Logits z [n, L, K]; scores t [n, G, K]; centre c [K]. Logits and
    scores are overwritten. Returns the sum, its gradient with respect to z (unspecified without `slopes`), and for the
    teacher the sums over rows of scores [K] and of softmaxes [K], each row's argmax [n * G], and the summed entropies
    of rows and of the p_n.
    """
    scores = teacher.sum((0, 1))
    each = teacher.sub_(centre).div_(temperature).softmax(-1)
    entropy = torch.special.entr(each).sum()
    mean = each.mean(1, keepdim=True) if each.shape[1] > 1 else each  # [n, 1, K]
    mean_entropy = torch.special.entr(mean).sum() if each.shape[1] > 1 else entropy
    logs = student.log_softmax(-1)
    loss = -(mean * logs).sum()
    slope = logs.exp_().sub_(mean) if slopes else logs
    return loss, slope, scores, each.sum((0, 1)), each.argmax(-1).flatten(), entropy, mean_entropy


def _logits(rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor, column_valid: Tensor) -> Tensor:
    """t x_i.y_j + b [B, M], -inf in columns that are not valid."""
    return torch.addmm(torch.where(column_valid, bias, -torch.inf), scale * rows, columns.T)


def _candidates(
    rows: Tensor, columns: Tensor, scale: Tensor, row_valid: Tensor, column_valid: Tensor, group: SameGroup | None
) -> Tensor:
    """t x_i.y_j [B, M], -inf in the pairs that a softmax leaves out."""
    logits = _logits(rows, columns, scale, torch.zeros_like(scale), column_valid)
    logits.masked_fill_(~row_valid[:, None], -torch.inf)
    return logits if group is None else logits.masked_fill_(group.same & (group.weight == 0), -torch.inf)
