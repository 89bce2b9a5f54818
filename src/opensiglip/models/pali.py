"""PaLI's language side: a T5 encoder-decoder that reads image tokens and a prompt, and writes the answer.    (PaLI)"""

import torch
from torch import Tensor, nn
from transformers import T5Config, T5Model

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
    def answer(self, memory: Tensor, prompts: Tensor, eos_id: int) -> list[tuple[int, ...]]:
        """The likeliest next id, again and again, for each prompt, until eos or the length; without eos."""
        states, seen = self.read(memory, prompts)
        inputs = torch.full((len(prompts), 1), self.pad_id, device=memory.device)
        for _ in range(self.length):
            logits = self.vocabulary(self.write(inputs, states, seen)[:, -1]).float()
            inputs = torch.cat([inputs, logits.argmax(-1, keepdim=True)], 1)
            if (inputs == eos_id).any(1).all():
                break
        texts = inputs[:, 1:].tolist()
        return [tuple(text[: text.index(eos_id)] if eos_id in text else text) for text in texts]
