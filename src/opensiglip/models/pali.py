"""PaLI's language side: a T5 encoder-decoder that reads image tokens and a prompt, and writes the answer.    (PaLI)"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, T5Config, T5Model

from opensiglip.models.decoder import Vocabulary
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

    @torch.no_grad()
    def answer(
        self, memory: Tensor, prompts: Tensor, eos_id: int, given: Sequence[Sequence[int]] = ()
    ) -> list[tuple[int, ...]]:
        """The likeliest next id, again and again, for each prompt, until eos or the length; without eos.

        `given`: the ids that each answer begins with, which are not repeated.
        """
        states, seen = self.read(memory, prompts)
        starts = [list(start) for start in given] or [[] for _ in prompts]
        inputs = torch.full((len(prompts), 1), self.pad_id, device=memory.device)
        ended = torch.zeros(len(prompts), dtype=torch.bool, device=memory.device)
        for place in range(self.length):
            logits = self.vocabulary(self.write(inputs, states, seen)[:, -1]).float()
            told = [start[place] if place < len(start) else -1 for start in starts]
            forced = torch.tensor(told, device=memory.device)
            following = torch.where(forced < 0, logits.argmax(-1), forced)
            inputs = torch.cat([inputs, following[:, None]], 1)
            ended |= following == eos_id
            if ended.all():
                break
        texts = [row[len(start) :] for row, start in zip(inputs[:, 1:].tolist(), starts, strict=True)]
        return [tuple(text[: text.index(eos_id)] if eos_id in text else text) for text in texts]


class Past(NamedTuple):
    """What T5's decoder remembers while it writes, and what its encoder read."""

    texts: EncoderDecoderCache
    states: Tensor  # [B, N + P, D]
    seen: Tensor | None  # [B, N + P], which are no padding

    def take(self, rows: Tensor) -> "Past":
        """Those rows [K] int64, in that order."""
        self.texts.reorder_cache(rows)  # type: ignore[arg-type]  # of int64, as it asks
        return Past(self.texts, self.states[rows], None if self.seen is None else self.seen[rows])


class PaliDecoder(nn.Module):
    """T5's decoder as those who decode know a `Decoder`: what its encoder read stands for the image tokens.

    Of one text a row, all at one place; it has learned no [MASK].
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
        """As `Decoder.forward`: hidden states [B, R, D]; what else a packed row says is not needed of one text."""
        return self.pali.write(inputs, memory, torch.ones_like(memory[..., 0]) if valid is None else valid)

    def remember(self, memory: Tensor, owners: Tensor | None = None, valid: Tensor | None = None) -> Past:
        """As `Decoder.remember`: no text yet."""
        whole = Past(EncoderDecoderCache(DynamicCache(), DynamicCache()), memory, valid)
        return whole if owners is None else whole.take(owners)

    def extend(self, inputs: Tensor, starts: Tensor, cache: Past) -> Tensor:
        """As `Decoder.extend`: hidden states [B, R, D] of the next inputs [B, R]."""
        return self.pali.t5.decoder(
            input_ids=inputs,
            attention_mask=inputs.new_ones(len(inputs), int(starts[0]) + inputs.shape[1]),
            encoder_hidden_states=cache.states,
            encoder_attention_mask=cache.seen,
            past_key_values=cache.texts,
            use_cache=True,
        ).last_hidden_state
