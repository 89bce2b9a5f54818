"""Cross-entropy over a vocabulary, in chunks of tokens: the logits of all tokens are never in memory at once."""

import torch
from torch import Tensor

from opensiglip.losses.equations import cross_entropy_block
from opensiglip.losses.fused import add_product, fuse, product_dtype, result, tile_sizes


def linear_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """sum_m w_m * -log softmax(W h_m + b)[y_m], chunked over tokens.

    hidden [M, D], weight [V, D], bias [V], targets [M] int64, weights [M] float32. Targets and weights may be [M, K]
    for K targets per row; the sum is then also over K. Under autocast the products run in its dtype, except fp16.
    If M is 0, the loss is 0 with zero gradients.
    """
    dtype = product_dtype(weight)
    return _linear_cross_entropy(hidden, weight, bias, targets, weights, dtype, torch.is_grad_enabled())[0]


@torch.library.custom_op("opensiglip::linear_cross_entropy", mutates_args=())
def _linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, weights: Tensor, dtype: torch.dtype, slopes: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    high = torch.promote_types(hidden.dtype, torch.float32)
    loss = torch.zeros((), dtype=high, device=hidden.device)
    dh, dw, db = (torch.zeros_like(x, dtype=high) if slopes else x.new_empty(0) for x in (hidden, weight, bias))
    w, c = weight.to(dtype), bias.to(high)
    sizes, row = tile_sizes(hidden), weight.shape[0] * torch.finfo(high).bits // 8  # bytes of a token's logits
    chunk = max(1, min(len(hidden), max(sizes.tokens, sizes.block // row)))
    strip = max(1, sizes.strip // row)
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
                add_product(dw, narrow.T, h)
    return result(loss, (hidden, weight, bias), (dh, dw, db), slopes)


fuse(_linear_cross_entropy, differentiable=3, others=4)
