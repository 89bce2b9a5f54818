"""Attention, the one function that all towers and the decoder call."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

NAME = "opensiglip"  # under which Hugging Face's modules find it
_FUSED = ContextVar("fused", default=False)


@contextmanager
def always_fused() -> Iterator[None]:
    """Inside, attention is torch's fused kernel on CPUs too, as it is on GPUs: for estimates of what a GPU holds."""
    before = _FUSED.set(True)
    try:
        yield
    finally:
        _FUSED.reset(before)


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d), where `mask` allows) v.

    query [B, heads, R, d], key and value [B, heads, N, d], mask broadcastable to [B, 1, R, N] bool, no row all False.

    torch's fused kernel, but not for bfloat16 on CPUs: there plain products are twice as fast
    (`opensiglip bench attention`), which oneDNN runs at full bfloat16 speed.
    """
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or _FUSED.get():
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    scale = query.shape[-1] ** -0.5
    if mask is None:
        return (query * scale @ key.mT).softmax(-1) @ value
    rows, heads = query.shape[:2]
    hidden = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, -torch.inf)
    hidden = hidden.expand(rows, heads, query.shape[2], key.shape[2]).flatten(0, 1)
    scores = torch.baddbmm(hidden, query.flatten(0, 1), key.flatten(0, 1).mT, alpha=scale)  # [B * heads, R, N]
    return (scores.softmax(-1) @ value.flatten(0, 1)).unflatten(0, (rows, heads))


def _for_hugging_face(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **_: Any
) -> tuple[Tensor, None]:
    """The signature transformers calls; Siglip's scaling is the usual one and it has no dropout."""
    return attention(query, key, value, attention_mask).transpose(1, 2), None


AttentionInterface.register(NAME, _for_hugging_face)
