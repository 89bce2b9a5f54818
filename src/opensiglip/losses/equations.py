"""The equations, with their slopes: pure functions of tensors; no weights, no ranks, no state.

The large losses are linear maps followed by a pointwise or row-wise log; their gradients cost one product each once the
logits are at hand. So each forward forms them block by block and nothing the size of the logits outlives its block.
`tests/test_losses.py` holds the plain autograd forms these must equal.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LOG2_E = math.log2(math.e)  # e^x = 2^(x log2 e), and torch's powers of two are three times as quick on a CPU


def sigmoid_block(
    rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor, here: Tensor, there: Tensor, *, own: bool, slopes: bool
) -> tuple[Tensor, ...]:
    """-sum_ij log sigma(z_ij (t x_i.y_j + b)), z_ij = 1 if i = j (and own) else -1.    (SigLIP, Sec. 3.2)

    rows [B, D], columns [M, D], scale t and bias b of one element; here [B] and there [M] bool: rows and columns that
    count. Returns the sum and, with `slopes`, its gradients with respect to rows, columns, scale and bias.

    -log sigma(-u) = softplus(u), and -log sigma(u) = softplus(u) - u: so negatives everywhere, then u off the diagonal.
    """
    logits = _logits(rows, columns, scale, bias, there)  # softplus and sigmoid of -inf are 0
    losses = F.softplus(logits).sum(1)
    if own:
        losses = losses - torch.where(here, logits.diagonal(), 0.0)
    loss = torch.where(here, losses, 0.0).sum()
    if not slopes:
        return (loss,)
    slope = logits.sigmoid_()  # d loss / d logits, but for rows that do not count
    if own:
        slope.diagonal().sub_(here.to(slope.dtype))
    counted = here[:, None]
    pull = torch.where(counted, slope @ columns, 0.0)  # [B, D], whose product with the rows is the slope of t
    db = torch.where(here, slope.sum(1), 0.0).sum()
    return loss, scale * pull, slope.T @ torch.where(counted, scale * rows, 0.0), (pull * rows).sum(), db


def softmax_sums(rows: Tensor, columns: Tensor, scale: Tensor, here: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """log sum_j e^(t x_i.y_j) of each row [B] and log sum_i e^(t x_i.y_j) of each column [M], over those that count."""
    logits = _logits(rows, columns, scale, torch.zeros_like(scale), there)
    logits.masked_fill_(~here[:, None], -torch.inf)
    return logits.logsumexp(1), logits.logsumexp(0)


def softmax_slopes(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    here: Tensor,
    there: Tensor,
    row_sums: Tensor,
    column_sums: Tensor,
    *,
    own: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of -1/2 sum_i (log p(y_i | x_i) + log p(x_i | y_i)) over one block.    (CLIP, Fig. 3)

    p(y_j | x_i) = exp(z_ij - row_sums_i), p(x_i | y_j) = exp(z_ij - column_sums_j), z = t x.y; the sums [B] and [M] are
    `softmax_sums` over *all* columns and rows, finite (any number where a row or column does not count). With `own`, i
    and j are partners where they are equal. Returns the gradients with respect to rows, columns and scale.
    """
    logits = _logits(rows, columns, scale, torch.zeros_like(scale), there)
    logits.masked_fill_(~here[:, None], -torch.inf)
    slope = (logits - column_sums).exp_()
    slope.add_(logits.sub_(row_sums[:, None]).exp_()).mul_(0.5)  # d loss / d logits
    if own:
        slope.diagonal().sub_(here.to(slope.dtype))
    pull = slope @ columns
    return scale * pull, slope.T @ (scale * rows), (pull * rows).sum()


def cross_entropy_block(logits: Tensor, targets: Tensor, weights: Tensor, *, slopes: bool) -> tuple[Tensor, ...]:
    """sum_m w_m * -log softmax(z_m)[y_m] over one block of tokens.    (CapPa, Sec. 3)

    logits z [M, V] are overwritten; targets [M], weights [M]. Returns the sum and, with `slopes`, its gradient by z.
    """
    logits.sub_(logits.amax(-1, keepdim=True))
    hit = logits.gather(1, targets[:, None])[:, 0]
    total = logits.mul_(LOG2_E).exp2_().sum(-1)
    loss = (weights * (total.log() - hit)).sum()
    if not slopes:
        return (loss,)
    slope = logits.mul_((weights / total)[:, None])
    slope[torch.arange(len(targets), device=targets.device), targets] -= weights
    return loss, slope


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """-sum_k p_t(k) log softmax(z_s / tau)(k).    (SILC, Eq. 3; DINO; iBOT on patches)

    student: logits [..., K]; teacher: probabilities [..., K], constants; shapes broadcast. Returns [...] in float32
    (float64 if given).
    """
    high = torch.promote_types(student.dtype, torch.float32)
    return -(teacher * F.log_softmax(student.to(high) / temperature, -1)).sum(-1)


def _logits(rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor, there: Tensor) -> Tensor:
    """t x_i.y_j + b [B, M], -inf in columns that do not count."""
    return torch.addmm(torch.where(there, bias, -torch.inf), scale * rows, columns.T)
