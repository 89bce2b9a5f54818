"""The captioning decoder: cross-attention to the image in every layer, at half the encoder's depth.

After big_vision models/proj/cappa/cappa.py:52-259, with which the goldens compare it. Texts come packed along one row
per image, so an image's keys and values are computed once per layer, whatever the number of its texts.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from opensiglip.losses.cross_entropy import linear_cross_entropy
from opensiglip.models.decoder_block import Block, Unpadded
from opensiglip.models.initialisation import lecun_normal_
from opensiglip.models.kv_cache import KVCache
from opensiglip.models.resize import resize_positions
from opensiglip.models.short_start import waves
from opensiglip.models.sizes import Shape
from opensiglip.types import Batch, Features


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

        With targets and weights [M] or [M, K], the weighted sum of -log p instead.
        """
        if among is not None:
            return F.linear(hidden, self.weight[among], self.bias[among])
        if targets is None or weights is None:
            return F.linear(hidden, self.weight, self.bias)
        return linear_cross_entropy(hidden, self.weight, self.bias, targets, weights)


class Decoder(nn.Module):
    """Predicts packed texts from image tokens. [MASK] is one more *input* row, id `vocabulary`."""

    def __init__(
        self,
        shape: Shape,
        vocabulary: int,
        length: int,
        memory_width: int,
        *,
        bias: bool = False,
        image_positions: int = 0,
        dropout: float = 0.0,
    ) -> None:
        """`image_positions`: of the image tokens, each with a learned one that the decoder adds; 0: it adds none.

        `dropout`: share of what each layer's parts, and the embeddings, add that is left out in training.
        """
        super().__init__()
        self.shape, self.length, self.mask_id = shape, length, vocabulary
        self.embedding = nn.Embedding(vocabulary + 1, shape.width)
        self.position = nn.Parameter(torch.empty(length, shape.width))
        self.image_position = nn.Parameter(torch.empty(image_positions, memory_width)) if image_positions else None
        self.dropout = dropout
        self.blocks = nn.ModuleList(Block(shape, memory_width, bias, dropout) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width, eps=1e-6)
        self.vocabulary = Vocabulary(shape.width, vocabulary)
        self.checkpointing = False  # form each block's activations again in backward, rather than keep them
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """flax's initialisation, as recipes of CapPa have it: embeddings N(0, 1), positions N(0, 1/sqrt(D)), attention
        lecun-normal, MLP xavier-uniform with biases N(0, 1e-6), output layer zero. Positions of image tokens, ours,
        begin as waves whose mean square is 1.
        """
        nn.init.normal_(self.embedding.weight, std=1.0)
        nn.init.normal_(self.position, std=self.shape.width**-0.5)
        if self.image_position is not None:
            count, width = self.image_position.shape
            self.image_position.copy_(2**0.5 * waves(math.isqrt(count), width))
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

        inputs, positions, segments [B, R] int64; full [B, R] bool: keys that their whole segment attends to, not only
        what comes after them (a parallel row's keys; a prefix-LM's prefix); memory [B, N, M] image tokens; valid [B, N]
        bool.
        real [T] int64: the places in the flattened rows that are no padding, by default all; elsewhere states are zero.
        One rule for all rows: query and key share a segment and (the key is not later, or it is full).
        """
        place = torch.arange(inputs.shape[1], device=inputs.device)
        causal = place[:, None] >= place  # [R, R]
        mask = (segments[:, :, None] == segments[:, None]) & (causal | full[:, None])
        image_mask = None if valid is None else valid[:, None, None]
        unpadded = None if real is None else Unpadded(real, *inputs.shape)
        if real is not None:
            inputs, positions = inputs.flatten()[real], positions.flatten()[real]
        x, position = self.embedding(inputs) + F.embedding(positions, self.position), self.places(memory)
        x = F.dropout(x, self.dropout, self.training) if self.dropout else x
        for block in self.blocks:
            given = x, memory, position, mask[:, None], image_mask, unpadded
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, *given, use_reentrant=False, preserve_rng_state=self.dropout > 0)
            else:
                x = block(*given)
        x = self.norm(x)
        return x if unpadded is None else unpadded.pad(x)

    def places(self, memory: Tensor) -> Tensor | None:
        """The position [N, M] of each of the image tokens [B, N, M], resized where an image has another size."""
        if self.image_position is None:
            return None
        side = math.isqrt(memory.shape[1])
        return resize_positions(self.image_position, side, side)

    def start_cache(self, memory: Tensor, owners: Tensor | None = None, valid: Tensor | None = None) -> KVCache:
        """What `append` begins with: the keys and values of image tokens [B, N, M] in every layer, made once; no text.

        owners [K] int64: the image that each row attends to, by default row i image i; valid [B, N] bool.
        """
        blocks, position = [block for block in self.blocks if isinstance(block, Block)], self.places(memory)
        keys = [block.cross_attention.keys(memory, position=position) for block in blocks]
        return KVCache.start(keys, owners, valid)

    def append(self, inputs: Tensor, starts: Tensor, cache: KVCache, column: Tensor | None = None) -> Tensor:
        """Hidden states [B, R, D] of each row's next inputs [B, R], of which the first stands at position `starts` [B].

        With `column` [B] int64 the state of that column of each row alone, [B, 1, D]; the last layer does no more.

        What `forward` gives for one causal text a row, whose earlier inputs earlier calls appended. Rows may stand at
        different positions, and those shorter than R end in padding: whatever comes later is written over it.
        """
        positions = starts[:, None] + torch.arange(inputs.shape[1], device=inputs.device)
        x = self.embedding(inputs) + F.embedding(positions, self.position)
        mask = torch.arange(int(positions.max()) + 1, device=inputs.device) <= positions[..., None]  # [B, R, so far]
        for block, layer in zip(self.blocks, cache.layers, strict=True):
            assert isinstance(block, Block)
            last = column if block is self.blocks[-1] else None
            x = block.append(x, positions, layer, cache.groups, mask[:, None], cache.image_mask, last)
        return self.norm(x)


def caption_loss(decoder: Decoder, image: Features, batch: Batch) -> Tensor:
    """The sum over a batch's sequences (`pack`) of their loss, of any decoder on any image tokens [B, N, D]."""
    row = [batch[field] for field in ("inputs", "positions", "segments", "full")]
    hidden = decoder(*row, image.tokens, image.valid, batch["real"])  # [B, R, D]
    scored = batch["scored"]  # [M] places in the flattened rows that carry loss
    return decoder.vocabulary(
        hidden.flatten(0, 1)[scored],
        batch["targets"].flatten()[scored],
        batch["weights"].flatten()[scored],
    )
