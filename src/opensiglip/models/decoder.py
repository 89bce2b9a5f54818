"""The captioning decoder: cross-attention to the image in every layer, at half the encoder's depth.

After big_vision models/proj/cappa/cappa.py:52-259, with which the goldens compare it. Texts come packed along one row
per image, so an image's keys and values are computed once per layer, whatever the number of its texts.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from opensiglip.losses.cross_entropy import linear_cross_entropy
from opensiglip.models.attention import attention
from opensiglip.models.initialisation import lecun_normal_
from opensiglip.models.kv_cache import Cache, Past, Seats
from opensiglip.models.sizes import Shape


class Places(NamedTuple):
    """Where in rows [B, R] the real tokens stand; all but attention works on those alone."""

    real: Tensor  # [T] int64, of the flattened rows
    rows: int  # B
    size: int  # R

    def spread(self, x: Tensor) -> Tensor:
        """[T, D] -> [B, R, D], zero elsewhere."""
        spread: Tensor = Spread.apply(x, self.real, self.rows * self.size)
        return spread.unflatten(0, (self.rows, self.size))

    def gather(self, x: Tensor) -> Tensor:
        """The inverse of `spread`."""
        return x.flatten(0, 1)[self.real]


class Spread(torch.autograd.Function):
    """`index_copy` into zeros, which on its own would keep what it copied until backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, real: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(real)
        return x.new_zeros(size, x.shape[-1]).index_copy_(0, real, x)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        return slope.index_select(0, *ctx.saved_tensors), None, None


class Attention(nn.Module):
    """Multi-head attention without dropout; `bias` on every projection or on none."""

    def __init__(self, width: int, heads: int, memory_width: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=bias)
        self.key_value = nn.Linear(memory_width, 2 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

    def keys(self, memory: Tensor, places: Places | None = None) -> Tensor:
        """Keys and values [2, B, heads, N, D / heads] of memory [B, N, M], or of [T, M] at their places."""
        made = self.key_value(memory)
        made = made if places is None else places.spread(made)
        return made.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def forward(self, x: Tensor, keys: Tensor, mask: Tensor | None, places: Places | None = None) -> Tensor:
        """x [B, R, D], or [T, D] at its places, reads that of which `keys` are, where mask [B, 1, R or 1, N] allows."""
        query = self.query(x)
        query = query if places is None else places.spread(query)
        query = query.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, R, D / heads]
        key, value = keys
        read = attention(query, key, value, mask).transpose(1, 2).flatten(2)
        return self.out(read if places is None else places.gather(read))


class Block(nn.Module):
    """h = x + SA(LN(x)); h = h + CA(LN(h), image); h + MLP(LN(h)).    (cappa.py:71-124)"""

    def __init__(self, shape: Shape, memory_width: int, bias: bool) -> None:
        super().__init__()
        width = shape.width
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width, eps=1e-6, bias=bias) for _ in range(3))
        self.self_attention = Attention(width, shape.heads, width, bias)
        self.cross_attention = Attention(width, shape.heads, memory_width, bias)
        self.up = nn.Linear(width, shape.mlp, bias=bias)
        self.down = nn.Linear(shape.mlp, width, bias=bias)

    def forward(
        self, x: Tensor, memory: Tensor, allowed: Tensor, seen: Tensor | None, places: Places | None = None
    ) -> Tensor:
        """x [B, R, D], or [T, D] at its places."""
        normed = self.norm1(x)
        x = x + self.self_attention(normed, self.self_attention.keys(normed, places), allowed, places)
        x = x + self.cross_attention(self.norm2(x), self.cross_attention.keys(memory), seen, places)
        return x + self.think(x)

    def extend(
        self,
        x: Tensor,
        places: Tensor,
        past: Past,
        seats: Seats,
        allowed: Tensor,
        seen: Tensor | None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """`forward` on the next inputs of rows whose earlier ones, and whose images, are remembered.

        With `wanted` [B], all are remembered and only that column of each row goes on.
        """
        normed = self.norm1(x)
        so_far = past.write(places, self.self_attention.keys(normed), allowed.shape[-1])
        if wanted is not None:
            rows = torch.arange(len(x), device=x.device)
            x, normed = x[rows, wanted][:, None], normed[rows, wanted][:, None]
            allowed = allowed[rows, :, wanted][:, :, None]
        x = x + self.self_attention(normed, so_far, allowed)
        x = x + seats.rows(self.cross_attention(seats.images(self.norm2(x)), past.image, seen))
        return x + self.think(x)

    def think(self, x: Tensor) -> Tensor:
        """The MLP's part."""
        return self.down(F.gelu(self.up(self.norm3(x)), approximate="tanh"))


class Vocabulary(nn.Module):
    """The output layer: untied, zero-initialised, with bias, so that the first loss is ln V.    (cappa.py:255-259)

    Its weights are read only in here, by a call, so that it can be sharded.
    """

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(vocabulary, width))
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(
        self,
        hidden: Tensor,
        targets: Tensor | None = None,
        weights: Tensor | None = None,
        *,
        among: Tensor | None = None,
    ) -> Tensor:
        """hidden [M, D] -> logits [M, V], or [M, A] of the ids `among` [A] alone.

        With targets and weights [M], the weighted sum of -log p instead.
        """
        if among is not None:
            return F.linear(hidden, self.weight[among], self.bias[among])
        if targets is None or weights is None:
            return F.linear(hidden, self.weight, self.bias)
        return linear_cross_entropy(hidden, self.weight, self.bias, targets, weights)


class Decoder(nn.Module):
    """Reads rows of packed texts off the image tokens. [MASK] is one more *input* row, id `vocabulary`."""

    def __init__(self, shape: Shape, vocabulary: int, length: int, memory_width: int, *, bias: bool = False) -> None:
        super().__init__()
        self.shape, self.length, self.mask_id = shape, length, vocabulary
        self.embedding = nn.Embedding(vocabulary + 1, shape.width)
        self.position = nn.Parameter(torch.empty(length, shape.width))
        self.blocks = nn.ModuleList(Block(shape, memory_width, bias) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width, eps=1e-6)
        self.vocabulary = Vocabulary(shape.width, vocabulary)
        self.checkpointing = False  # form each block's activations again in backward, rather than keep them
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """flax's initialisation, as recipes of CapPa have it: embeddings N(0, 1), positions N(0, 1/sqrt(D)), attention
        lecun-normal, MLP xavier-uniform with biases N(0, 1e-6), output layer zero.
        """
        nn.init.normal_(self.embedding.weight, std=1.0)
        nn.init.normal_(self.position, std=self.shape.width**-0.5)
        for block in self.blocks:
            assert isinstance(block, Block)
            for part in (block.self_attention, block.cross_attention):
                for linear in (part.query, part.key_value, part.out):
                    lecun_normal_(linear.weight)
                    if linear.bias is not None:
                        nn.init.zeros_(linear.bias)
            for linear in (block.up, block.down):
                nn.init.xavier_uniform_(linear.weight)
                if linear.bias is not None:
                    nn.init.normal_(linear.bias, std=1e-6)

    def forward(
        self,
        inputs: Tensor,
        positions: Tensor,
        segments: Tensor,
        full: Tensor,
        memory: Tensor,
        valid: Tensor | None = None,
        real: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [B, R, D] of packed rows; `vocabulary` makes logits of them.

        inputs, positions, segments [B, R] int64; full [B, R] bool: key seen by its whole segment, not only by what
        comes after it (a parallel row's keys; a prefix-LM's prefix); memory [B, N, M] image tokens; valid [B, N] bool.
        real [T] int64: the places in the flattened rows that are no padding, by default all; elsewhere states are zero.
        One rule for all rows: query and key share a segment and (the key is not later, or it is full).
        """
        place = torch.arange(inputs.shape[1], device=inputs.device)
        causal = place[:, None] >= place  # [R, R]
        allowed = (segments[:, :, None] == segments[:, None]) & (causal | full[:, None])
        seen = None if valid is None else valid[:, None, None]
        places = None if real is None else Places(real, *inputs.shape)
        if real is not None:
            inputs, positions = inputs.flatten()[real], positions.flatten()[real]
        x = self.embedding(inputs) + F.embedding(positions, self.position)
        for block in self.blocks:
            given = x, memory, allowed[:, None], seen, places
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, *given, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(*given)
        x = self.norm(x)
        return x if places is None else places.spread(x)

    def remember(self, memory: Tensor, owners: Tensor | None = None, valid: Tensor | None = None) -> Cache:
        """What `extend` begins with: image tokens [B, N, M] as every layer's keys and values, made once; no text yet.

        owners [K] int64: the image that each row reads, by default row i image i; valid [B, N] bool.
        """
        layers = []
        for block in self.blocks:
            assert isinstance(block, Block)
            image = block.cross_attention.keys(memory)
            layers.append(Past(image, image[..., :0, :]))
        whole = Cache(layers, Seats.of(torch.arange(len(memory), device=memory.device)), valid)
        return whole if owners is None else whole.take(owners)

    def extend(self, inputs: Tensor, starts: Tensor, cache: Cache, wanted: Tensor | None = None) -> Tensor:
        """Hidden states [B, R, D] of each row's next inputs [B, R], of which the first stands at place `starts` [B].

        With `wanted` [B] int64 only that column of each row is asked for: [B, 1, D], and the last layer does no more.

        What `forward` gives for one causal text a row, whose earlier inputs were read by earlier calls. Rows may stand
        at different places, and those shorter than R end in padding: whatever is read later is written over it.
        """
        places = starts[:, None] + torch.arange(inputs.shape[1], device=inputs.device)
        x = self.embedding(inputs) + F.embedding(places, self.position)
        allowed = torch.arange(int(places.max()) + 1, device=inputs.device) <= places[..., None]  # [B, R, so far]
        seen = None if cache.valid is None else cache.valid[:, None, None]
        for block, past in zip(self.blocks, cache.layers, strict=True):
            assert isinstance(block, Block)
            last = wanted if block is self.blocks[-1] else None
            x = block.extend(x, places, past, cache.seats, allowed[:, None], seen, last)
        return self.norm(x)
