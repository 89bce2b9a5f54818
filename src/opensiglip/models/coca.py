"""CoCa: a text decoder whose first half does not see the image, and poolers between it and the image.    (CoCa)

The unimodal half reads a text with [CLS] behind it, whose state is the text's embedding; the multimodal half goes on
from its states and attends to the image, to predict the text. So one pass over a text serves both losses. Layers, norms
and activation are open_clip's, so that its weights load (checkpoints/formats/open_clip_coca.py); the paper does not
give them.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionModel

from opensiglip.models.decoder import Vocabulary
from opensiglip.models.decoder_block import Attention
from opensiglip.models.kv_cache import KVCache, LayerCache, RowGroups
from opensiglip.models.resize import text_places
from opensiglip.models.sizes import CoCaShape, Shape
from opensiglip.models.towers import Vision, select
from opensiglip.types import Features

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Layer(nn.Module):
    """x + A(LN(x)), then x + MLP(LN(x)); A attends to the text itself, or with `memory_width` to the image.

    (open_clip transformer.py:238-300)
    """

    def __init__(self, shape: Shape, memory_width: int | None = None) -> None:
        super().__init__()
        width = shape.width
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.memory_norm = None if memory_width is None else nn.LayerNorm(memory_width)
        self.attention = Attention(width, shape.heads, memory_width or width, bias=True)
        self.up, self.down = nn.Linear(width, shape.mlp), nn.Linear(shape.mlp, width)

    def forward(self, x: Tensor, memory: Tensor | None, mask: Tensor | None) -> Tensor:
        """x [B, R, D]; memory [B, N, M] if it is what is attended to; mask [B or 1, 1, R, R or N] bool."""
        normed = self.norm1(x)
        source = normed if self.memory_norm is None else self.memory_norm(memory)
        x = x + self.attention(normed, self.attention.keys(source), mask)
        return x + self.mlp(x)

    def append(self, x: Tensor, positions: Tensor, layer: LayerCache, groups: RowGroups, mask: Tensor) -> Tensor:
        """`forward` on the next tokens of rows whose earlier ones, or whose images, are cached."""
        normed = self.norm1(x)
        if self.memory_norm is not None:
            x = x + groups.by_row(self.attention(groups.by_image(normed), layer.image, None))
        else:
            keys = layer.append(positions, self.attention.keys(normed), mask.shape[-1])
            x = x + self.attention(normed, keys, mask)
        return x + self.mlp(x)

    def mlp(self, x: Tensor) -> Tensor:
        """W2 gelu(W1 LN(x))."""
        return self.down(F.gelu(self.up(self.norm2(x))))


class Pooler(nn.Module):
    """Learned queries, each reading all of the image tokens by one attention layer.    (CoCa, Sec. 3.2)"""

    def __init__(self, queries: int, width: int, heads: int, memory_width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(queries, width))
        self.query_norm, self.memory_norm = nn.LayerNorm(width), nn.LayerNorm(memory_width)
        self.attention = Attention(width, heads, memory_width, bias=True)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [B, N, M] -> [B, Q, D]."""
        query = self.query_norm(self.query).expand(tokens.shape[0], -1, -1)
        return self.attention(query, self.attention.keys(self.memory_norm(tokens)), None)


class ClipVision(nn.Module):
    """CLIP's image tower: a class token before the patches, a norm before the layers; all tokens are handed on."""

    mean: Tensor
    std: Tensor

    def __init__(self, tower: CLIPVisionModel, *, normed: bool) -> None:
        """`normed`: does the tower end in its norm? (Not where a pooler comes first and is normed itself.)"""
        super().__init__()
        self.tower, self.normed, self.width = tower, normed, int(tower.config.hidden_size)
        tower.post_layernorm.requires_grad_(normed)
        for name, value in (("mean", CLIP_MEAN), ("std", CLIP_STD)):
            self.register_buffer(name, torch.tensor(value).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor, *, kept: Tensor | None = None) -> Features:
        """pixels [B, 3, H, W] in [-1, 1] -> tokens [B, 1 + N, D]; with `kept` [B, K] of the class token and those."""
        x = self.tower.embeddings(((pixels + 1) / 2 - self.mean) / self.std)
        if kept is not None:
            x = torch.cat([x[:, :1], select(x[:, 1:], kept)], 1)
        x = self.tower.pre_layrnorm(x)
        x = self.tower.encoder(inputs_embeds=x).last_hidden_state
        return Features(None, self.tower.post_layernorm(x) if self.normed else x)


class PooledVision(nn.Module):
    """An image tower and CoCa's poolers: tokens for the decoder, and one of them, projected, for the comparison."""

    def __init__(self, image: Vision | ClipVision, shape: CoCaShape) -> None:
        super().__init__()
        self.image, self.pooling = image, shape.pooling
        self.width = shape.embed if shape.pooling == "first" else image.width  # of the tokens that are handed on
        self.captioning = Pooler(shape.queries, self.width, shape.heads, image.width)
        one = shape.pooling == "first"
        self.contrastive = None if one else Pooler(1, self.width, shape.heads, image.width)
        self.norm = nn.LayerNorm(self.width) if one else None
        self.head = nn.Linear(self.width, shape.embed, bias=False)
        nn.init.normal_(self.head.weight, std=self.width**-0.5)

    @property
    def tower(self) -> Any:
        """The transformers model inside."""
        return self.image.tower

    def forward(self, pixels: Tensor, *, kept: Tensor | None = None) -> Features:
        """pixels [B, 3, H, W] in [-1, 1], of which `kept` [B, K] are read -> pooled [B, E] and tokens [B, Q, D]."""
        seen = self.image(pixels, kept=kept).tokens
        tokens = self.captioning(seen)
        if self.norm is not None:
            first, *rest = self.norm(tokens).split([1, tokens.shape[1] - 1], 1)
            return Features(self.head(first[:, 0]), rest[0])
        assert self.contrastive is not None
        pooled = self.contrastive(tokens if self.pooling == "cascade" else seen)
        return Features(self.head(pooled[:, 0]), tokens)


class Unimodal(nn.Module):
    """The half of the text decoder that does not see the image; [CLS], behind the text, embeds it.

    The embedding has two more rows than the vocabulary: the start token's, then [CLS]'s. [CLS] always stands at the
    last place, whatever the text's length, and looks at no padding.    (CoCa, Sec. 3.2; open_clip transformer.py:1088)
    """

    def __init__(self, shape: Shape, coca: CoCaShape, vocabulary: int, length: int, pad_id: int) -> None:
        super().__init__()
        width = shape.width
        self.vocabulary, self.length, self.pad_id, self.legacy_mask = vocabulary, length, pad_id, coca.legacy_mask
        self.embedding = nn.Embedding(vocabulary + 2, width)
        self.position = nn.Parameter(torch.empty(length + 2, width))
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, coca.embed, bias=False)
        nn.init.normal_(self.embedding.weight)
        nn.init.normal_(self.position, std=width**-0.5)
        nn.init.normal_(self.head.weight, std=width**-0.5)

    def forward(self, ids: Tensor) -> Features:
        """ids [B, L] int64, padded to one length -> pooled [B, E]; tokens [B, 1 + L, D], token i telling of ids[i]."""
        row = F.pad(F.pad(ids, (1, 0), value=self.vocabulary), (0, 1), value=self.vocabulary + 1)
        x = self.embedding(row) + F.embedding(text_places(row.shape[1], len(self.position), row.device), self.position)
        valid = F.pad(ids != self.pad_id, (2, 0) if self.legacy_mask else (1, 1), value=True)
        mask = causal(x) & valid[:, None, None]
        for layer in self.layers:
            x = layer(x, None, mask)
        return Features(self.head(self.norm(x[:, -1])), x[:, :-1])

    def embed(self, inputs: Tensor, positions: Tensor) -> Tensor:
        """What the first layer reads of a decoder's inputs [B, R], the first of each text being its start."""
        ids = torch.where(positions == 0, self.vocabulary, inputs)
        return self.embedding(ids) + F.embedding(positions, self.position)


class Multimodal(nn.Module):
    """The half of the text decoder that sees the image: in turn a layer on the text and one on the image.

    To those who decode it is a `Decoder`, the unimodal half its first layers; it has learned no [MASK].
    """

    def __init__(self, text: Unimodal, shape: Shape, memory_width: int) -> None:
        super().__init__()
        self.text = [text]  # listed: not a submodule
        self.shape, self.length, self.mask_id = shape, text.length, text.vocabulary
        self.layers = nn.ModuleList(Layer(shape, memory) for _ in range(shape.depth) for memory in (None, memory_width))
        self.norm = nn.LayerNorm(shape.width)
        self.vocabulary = Vocabulary(shape.width, text.vocabulary)

    def forward(
        self,
        inputs: Tensor,
        positions: Tensor,
        segments: Tensor,
        full: Tensor,
        memory: Tensor,
        valid: Tensor | None = None,
    ) -> Tensor:
        """As `Decoder.forward`: hidden states [B, R, D] of packed rows."""
        x = self.text[0].embed(inputs, positions)
        mask = ((segments[:, :, None] == segments[:, None]) & (causal(x)[0] | full[:, None]))[:, None]
        for layer in self.text[0].layers:
            x = layer(x, None, mask)
        return self.go_on(x, memory, mask)

    def go_on(self, x: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """Hidden states [B, R, D] from the unimodal half's [B, R, D] and image tokens [B, N, M]."""
        mask = causal(x) if mask is None else mask
        for layer in self.layers:
            assert isinstance(layer, Layer)
            x = layer(x, None, mask) if layer.memory_norm is None else layer(x, memory, None)
        return self.norm(x)

    def start_cache(self, memory: Tensor, owners: Tensor | None = None, valid: Tensor | None = None) -> KVCache:
        """As `Decoder.start_cache`: the keys and values of image tokens [B, N, M] in each image layer; no text.

        A layer on the text has an image of no tokens.
        """
        nothing = memory.new_zeros(len(memory), 0, self.shape.width)
        sources = ((layer, layer.memory_norm(memory) if layer.memory_norm else nothing) for layer in self._all())
        return KVCache.start([layer.attention.keys(source).contiguous() for layer, source in sources], owners, None)

    def append(self, inputs: Tensor, starts: Tensor, cache: KVCache, column: Tensor | None = None) -> Tensor:
        """As `Decoder.append`: hidden states [B, R, D] of each row's next inputs, the first at position `starts`."""
        positions = starts[:, None] + torch.arange(inputs.shape[1], device=inputs.device)
        x = self.text[0].embed(inputs, positions)
        mask = torch.arange(int(positions.max()) + 1, device=inputs.device) <= positions[..., None]
        for layer, cached in zip(self._all(), cache.layers, strict=True):
            x = layer.append(x, positions, cached, cache.groups, mask[:, None])
        if column is not None:
            x = x[torch.arange(len(x), device=x.device), column][:, None]
        return self.norm(x)

    def _all(self) -> list[Layer]:
        return [layer for layer in (*self.text[0].layers, *self.layers) if isinstance(layer, Layer)]


def causal(x: Tensor) -> Tensor:
    """[1, 1, R, R] bool for x [B, R, D]: no position attends to a later one."""
    place = torch.arange(x.shape[1], device=x.device)
    return (place[:, None] >= place)[None, None]
