"""The equations, with their slopes: pure functions of tensors; no weights, no ranks, no state.

The two large losses are linear maps followed by a pointwise or row-wise log; their gradients cost one product each once
the logits are at hand. So each forward forms them block by block and nothing the size of the logits outlives its block.
`tests/test_losses.py` holds the plain autograd forms these must equal.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def sigmoid_block(
    rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor, pairs: Tensor, *, own: bool, slopes: bool
) -> tuple[Tensor, ...]:
    """-sum_ij log sigma(z_ij (t x_i.y_j + b)), z_ij = 1 if i = j (and own) else -1.    (SigLIP, Sec. 3.2)

    rows [B, D], columns [M, D], scale t and bias b of one element, pairs [B, M] bool: the pairs that count. Returns the
    sum and, with `slopes`, its gradients with respect to rows, columns, scale and bias.

    -log sigma(-u) = softplus(u), and -log sigma(u) = softplus(u) - u: so negatives everywhere, then u off the diagonal.
    """
    dots = rows @ columns.T  # [B, M]
    logits = torch.where(pairs, scale * dots + bias, -torch.inf)  # softplus and sigmoid of -inf are 0
    loss = F.softplus(logits).sum()
    if own:
        loss = loss - torch.where(pairs.diagonal(), logits.diagonal(), 0.0).sum()
    if not slopes:
        return (loss,)
    slope = torch.sigmoid(logits)  # d loss / d logits
    if own:
        slope.diagonal().sub_(pairs.diagonal().to(slope.dtype))
    return loss, scale * (slope @ columns), scale * (slope.T @ rows), (slope * dots).sum(), slope.sum()


def cross_entropy_block(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, weights: Tensor, *, slopes: bool
) -> tuple[Tensor, ...]:
    """sum_m w_m * -log softmax(W h_m + b)[y_m] over one block of tokens.    (CapPa, Sec. 3)

    hidden [M, D], weight [V, D], bias [V], targets [M], weights [M]; the products run in hidden's dtype, the softmax in
    float32 (float64 if given). Returns the sum and, with `slopes`, its gradients by hidden, weight and bias.
    """
    high = weights.dtype
    log_probability = F.linear(hidden, weight, bias).to(high).log_softmax(-1)  # [M, V]
    loss = -(weights * log_probability.gather(1, targets[:, None])[:, 0]).sum()
    if not slopes:
        return (loss,)
    slope = log_probability.exp_()
    slope[torch.arange(len(targets), device=targets.device), targets] -= 1
    slope *= weights[:, None]
    narrow = slope.to(hidden.dtype)
    return loss, (narrow @ weight).to(high), (narrow.T @ hidden).to(high), slope.sum(0)


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """-sum_k p_t(k) log softmax(z_s / tau)(k).    (SILC, Eq. 3; DINO; iBOT on patches)

    student: logits [..., K]; teacher: probabilities [..., K], constants; shapes broadcast. Returns [...] in float32
    (float64 if given).
    """
    high = torch.promote_types(student.dtype, torch.float32)
    return -(teacher * F.log_softmax(student.to(high) / temperature, -1)).sum(-1)
