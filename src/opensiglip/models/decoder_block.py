"""A layer of the captioning decoder: self-attention, cross-attention to the image, MLP; on the real tokens alone."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opensiglip.models.attention import attention
from opensiglip.models.kv_cache import LayerCache, RowGroups
from opensiglip.models.sizes import Shape


class Unpadded(NamedTuple):
    """Where in rows [B, R] the real tokens stand; all but attention works on those alone."""

    real: Tensor  # [T] int64, of the flattened rows
    rows: int  # B
    length: int  # R

    def pad(self, x: Tensor) -> Tensor:
        """[T, D] -> [B, R, D], zero elsewhere."""
        padded: Tensor = Scatter.apply(x, self.real, self.rows * self.length)
        return padded.unflatten(0, (self.rows, self.length))

    def unpad(self, x: Tensor) -> Tensor:
        """The inverse of `pad`."""
        return x.flatten(0, 1)[self.real]


class Scatter(torch.autograd.Function):
    """`index_copy` into zeros, which on its own would keep what it copied until backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, real: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(real)
        return x.new_zeros(size, x.shape[-1]).index_copy_(0, real, x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient.index_select(0, *ctx.saved_tensors), None, None


class Attention(nn.Module):
    """Multi-head attention without dropout; `bias` on every projection or on none."""

    def __init__(self, width: int, heads: int, memory_width: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=bias)
        self.key_value = nn.Linear(memory_width, 2 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

    def keys(self, memory: Tensor, unpadded: Unpadded | None = None, position: Tensor | None = None) -> Tensor:
        """Keys and values [2, B, heads, N, D / heads] of memory [B, N, M], or of its real tokens [T, M].

        position [N, M] is added to memory, in effect: to what the matrix makes of it, so that positions learn without a
        gradient of every image's tokens.
        """
        both = self.key_value(memory)
        both = both if position is None else both + F.linear(position, self.key_value.weight)
        both = both if unpadded is None else unpadded.pad(both)
        return both.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def forward(self, x: Tensor, keys: Tensor, mask: Tensor | None, unpadded: Unpadded | None = None) -> Tensor:
        """x [B, R, D], or its real tokens [T, D], attends to `keys` where mask [B, 1, R or 1, N] bool allows."""
        query = self.query(x)
        query = query if unpadded is None else unpadded.pad(query)
        query = query.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, R, D / heads]
        key, value = keys
        mixed = attention(query, key, value, mask).transpose(1, 2).flatten(2)
        return self.out(mixed if unpadded is None else unpadded.unpad(mixed))


class Block(nn.Module):
    """h = x + SA(LN(x)); h = h + CA(LN(h), image); h + MLP(LN(h)).    (cappa.py:71-124)"""

    def __init__(self, shape: Shape, memory_width: int, bias: bool, dropout: float = 0.0) -> None:
        super().__init__()
        width = shape.width
        self.dropout = dropout  # of what each part adds to x
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width, eps=1e-6, bias=bias) for _ in range(3))
        self.self_attention = Attention(width, shape.heads, width, bias)
        self.cross_attention = Attention(width, shape.heads, memory_width, bias)
        self.up = nn.Linear(width, shape.mlp, bias=bias)
        self.down = nn.Linear(shape.mlp, width, bias=bias)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        position: Tensor | None,
        mask: Tensor,
        image_mask: Tensor | None,
        unpadded: Unpadded | None = None,
    ) -> Tensor:
        """x [B, R, D], or its real tokens [T, D]; memory [B, N, M] image tokens; position [N, M] of theirs."""
        normed = self.norm1(x)
        x = x + self.drop(self.self_attention(normed, self.self_attention.keys(normed, unpadded), mask, unpadded))
        keys = self.cross_attention.keys(memory, position=position)
        x = x + self.drop(self.cross_attention(self.norm2(x), keys, image_mask, unpadded))
        return x + self.drop(self.mlp(x))

    def append(
        self,
        x: Tensor,
        positions: Tensor,
        layer: LayerCache,
        groups: RowGroups,
        mask: Tensor,
        image_mask: Tensor | None,
        column: Tensor | None = None,
    ) -> Tensor:
        """`forward` on the next tokens of rows whose earlier ones, and whose images, are cached.

        With `column` [B], all are cached and the output is that column's of each row alone.
        """
        normed = self.norm1(x)
        keys = layer.append(positions, self.self_attention.keys(normed), mask.shape[-1])
        if column is not None:
            rows = torch.arange(len(x), device=x.device)
            x, normed = x[rows, column][:, None], normed[rows, column][:, None]
            mask = mask[rows, :, column][:, :, None]
        x = x + self.self_attention(normed, keys, mask)
        x = x + groups.by_row(self.cross_attention(groups.by_image(self.norm2(x)), layer.image, image_mask))
        return x + self.mlp(x)

    def drop(self, x: Tensor) -> Tensor:
        """Dropout, while training."""
        return F.dropout(x, self.dropout, self.training) if self.dropout else x

    def mlp(self, x: Tensor) -> Tensor:
        """W2 gelu(W1 LN(x))."""
        return self.down(F.gelu(self.up(self.norm3(x)), approximate="tanh"))
