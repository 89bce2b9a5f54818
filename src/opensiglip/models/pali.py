"""PaLI's language side: a T5 encoder-decoder from image tokens and a prompt to the answer.    (PaLI)"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import T5Config, T5Model

from opensiglip.models.decoder import Vocabulary
from opensiglip.models.kv_cache import KVCache
from opensiglip.models.sizes import Shape


class Pali(nn.Module):
    """The image's tokens, projected, stand before the prompt's embeddings; T5 does the rest.

    T5 v1.1 (gated GELU, no dropout in pretraining), as mT5 is. Its output layer is untied there too, and is the one
    that all decoders here have: it starts at zero and sees real tokens only.
    """

    def __init__(self, shape: Shape, vocabulary: int, length: int, memory_width: int, pad_id: int) -> None:
        super().__init__()
        self.length, self.pad_id = length, pad_id
        config = T5Config(
            vocab_size=vocabulary,
            d_model=shape.width,
            d_kv=shape.width // shape.heads,
            d_ff=shape.mlp,
            num_layers=shape.depth,
            num_heads=shape.heads,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            pad_token_id=pad_id,
            use_cache=False,
        )
        self.t5 = T5Model(config)
        self.project = nn.Linear(memory_width, shape.width)
        self.vocabulary = Vocabulary(shape.width, vocabulary)

    def forward(self, memory: Tensor, prompts: Tensor, inputs: Tensor) -> Tensor:
        """memory [S, N, M] image tokens, prompts [S, P] padded, inputs [S, L] behind pad -> hidden [S, L, D]."""
        return self.write(inputs, *self.read(memory, prompts))

    def read(self, memory: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder's states [S, N + P, D], and which of them are no padding."""
        x = torch.cat([self.project(memory), self.t5.shared(prompts)], 1)
        seen = torch.cat([torch.ones_like(memory[..., 0], dtype=torch.bool), prompts != self.pad_id], 1).long()
        return self.t5.encoder(inputs_embeds=x, attention_mask=seen).last_hidden_state, seen

    def write(self, inputs: Tensor, states: Tensor, seen: Tensor) -> Tensor:
        """The decoder's states [S, L, D] of inputs [S, L], each having seen those before it."""
        # Given outright: T5 would else take the start token, which is pad, for padding.
        mask = torch.ones_like(inputs)
        return self.t5.decoder(
            input_ids=inputs, attention_mask=mask, encoder_hidden_states=states, encoder_attention_mask=seen
        ).last_hidden_state


class PaliDecoder(nn.Module):
    """T5's decoder with the interface of `Decoder`; the image tokens are the encoder's states (`Pali.read`).

    One text a row; there is no [MASK]. With its own KV cache, so that rows may stand at different positions.
    """

    def __init__(self, pali: Pali) -> None:
        super().__init__()
        self.pali, self.length, self.vocabulary = pali, pali.length, pali.vocabulary
        self.mask_id = len(pali.vocabulary.bias)

    def forward(
        self,
        inputs: Tensor,
        positions: Tensor,
        segments: Tensor,
        full: Tensor,
        memory: Tensor,
        valid: Tensor | None = None,
    ) -> Tensor:
        """As `Decoder.forward`: hidden states [B, R, D]; a row of one text needs no positions and segments."""
        return self.pali.write(inputs, memory, torch.ones_like(memory[..., 0]) if valid is None else valid)

    def start_cache(self, memory: Tensor, owners: Tensor | None = None, valid: Tensor | None = None) -> KVCache:
        """As `Decoder.start_cache`: the keys and values of the encoder's states [B, N + P, D]; no text."""
        attentions = [cross.EncDecAttention for _, cross, _ in self._layers()]
        keys = [heads(attention, attention.k(memory), attention.v(memory)) for attention in attentions]
        return KVCache.start(keys, owners, None if valid is None else valid.bool())

    def append(self, inputs: Tensor, starts: Tensor, cache: KVCache, column: Tensor | None = None) -> Tensor:
        """As `Decoder.append`: hidden states [B, R, D] of each row's next inputs, the first at position `starts`."""
        decoder, groups = self.pali.t5.decoder, cache.groups
        positions = starts[:, None] + torch.arange(inputs.shape[1], device=inputs.device)
        length = int(positions.max()) + 1
        x = decoder.embed_tokens(inputs)
        relative = self._layers()[0][0].SelfAttention.compute_bias(length, length)[0]  # [heads, query, key]
        earlier = torch.arange(length, device=inputs.device) <= positions[..., None]  # [B, R, key]
        bias = relative[:, positions].transpose(0, 1).masked_fill(~earlier[:, None], -torch.inf)
        for (first, cross, mlp), layer in zip(self._layers(), cache.layers, strict=True):
            attention, normed = first.SelfAttention, first.layer_norm(x)
            keys = layer.append(positions, heads(attention, attention.k(normed), attention.v(normed)), length)
            x = x + attend(attention, normed, keys, bias)
            attention, normed = cross.EncDecAttention, groups.by_image(cross.layer_norm(x))
            x = x + groups.by_row(attend(attention, normed, layer.image, cache.image_mask))
            x = mlp(x)
        if column is not None:
            x = x[torch.arange(len(x), device=x.device), column][:, None]
        return decoder.final_layer_norm(x)

    def _layers(self) -> list[Any]:
        """Self-attention, cross-attention and MLP of each of T5's blocks."""
        blocks: Any = self.pali.t5.decoder.block
        return [list(block.layer) for block in blocks]


def heads(attention: Any, *projected: Tensor) -> Tensor:
    """Projections [B, N, heads * d] of a T5 attention, stacked [P, B, heads, N, d]."""
    return torch.stack(projected).unflatten(-1, (attention.n_heads, -1)).transpose(2, 3)


def attend(attention: Any, x: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
    """T5's attention of x [B, R, D] to `keys`: softmax(q k^T + mask) v, not divided by sqrt(d)."""
    (query,), (key, value) = heads(attention, attention.q(x)), keys
    mask = mask if mask is None or mask.dtype == torch.bool else mask.to(query.dtype)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1.0)
    return attention.o(mixed.transpose(1, 2).flatten(2))
