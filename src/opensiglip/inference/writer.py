"""The decoder as transformers' `generate` knows one: greedy, by beam, sampled, with the decoder's own memory."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin, LogitsProcessor, LogitsProcessorList, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from opensiglip.data.fields.captions import Ids
from opensiglip.errors import UserError
from opensiglip.inference.box_grammar import BoxGrammar, State
from opensiglip.models import coca, pali


class WriterConfig(PreTrainedConfig):
    """What `generate` asks of a config."""

    model_type = "opensiglip_decoder"
    vocab_size: int = 0


class Memory:
    """What a decoder remembers, as `generate` handles it: it grows with every call, and beams pick rows of it."""

    is_croppable = False

    def __init__(self, cache: Any) -> None:
        self.cache, self.length = cache, 0

    def get_seq_length(self) -> int:
        return self.length

    def reorder_cache(self, rows: Tensor) -> None:
        self.cache = self.cache.take(rows)


class Writer(PreTrainedModel, GenerationMixin):
    """`generate` over a decoder. Rows begin with pad, the start token, so they need a mask of ones."""

    config_class = WriterConfig

    def __init__(self, decoder: coca.Writer | pali.PaliDecoder, pad_id: int, eos_id: int) -> None:
        super().__init__(WriterConfig(vocab_size=decoder.mask_id))
        self.decoder = decoder  # no post_init: it would draw new weights
        self.generation_config.update(pad_token_id=pad_id, eos_token_id=eos_id, do_sample=False)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the first forward makes a Memory

    def forward(
        self,
        input_ids: Tensor,
        memory: Tensor | None = None,
        valid: Tensor | None = None,
        past_key_values: Memory | None = None,
        attention_mask: Tensor | None = None,
        use_cache: bool = True,
        return_dict: bool = True,
    ) -> CausalLMOutputWithPast:
        """input_ids [B, R], of which with a memory only the new ones -> logits [B, 1, V] of what comes next.

        memory [B, N, M] image tokens, valid [B, N] bool.
        """
        assert memory is not None
        places = torch.arange(input_ids.shape[1], device=input_ids.device).expand(input_ids.shape)
        if use_cache:
            past = past_key_values or Memory(self.decoder.remember(memory, valid=valid))
            starts = torch.full_like(input_ids[:, 0], past.length)
            hidden = self.decoder.extend(input_ids, starts, past.cache)
            past.length += input_ids.shape[1]
        else:
            past = None
            one_text = torch.zeros_like(input_ids)
            hidden = self.decoder(input_ids, places, one_text, one_text.bool(), memory, valid)
        # A memory is no `Cache` of the library's, and need not be.
        return CausalLMOutputWithPast(logits=self.decoder.vocabulary(hidden[:, -1:]), past_key_values=past)  # type: ignore[arg-type]

    @torch.no_grad()
    def write(
        self,
        memory: Tensor,
        prefixes: Sequence[Ids],
        *,
        valid: Tensor | None = None,
        grammar: BoxGrammar | None = None,
        **how: Any,
    ) -> list[Ids]:
        """What `generate` writes behind each of the B prefixes, without prefix and what ends it.

        memory [B, N, M] image tokens. `how` are generate's own keywords; with `num_return_sequences` each prefix has so
        many texts, side by side. Raises UserError on a prefix that leaves no room.
        """
        pad, length = self.generation_config.pad_token_id, self.decoder.length
        ends = how.get("eos_token_id", self.generation_config.eos_token_id)
        written: dict[int, list[Ids]] = {}
        for size in sorted({len(prefix) for prefix in prefixes}):  # rows of one length need no padding
            if size >= length:
                raise UserError(
                    f"a text of {size} tokens leaves no room: this model's have at most {length}; shorten it."
                )
            rows = [row for row, prefix in enumerate(prefixes) if len(prefix) == size]
            inputs = torch.tensor([[pad, *prefixes[row]] for row in rows], device=memory.device)
            only = LogitsProcessorList([] if grammar is None else [OnlyBoxes(grammar, inputs.shape[1])])
            ids = self.generate(  # type: ignore[misc]  # it asks for what every PreTrainedModel has
                inputs,
                attention_mask=torch.ones_like(inputs),
                memory=memory[rows],
                valid=None if valid is None else valid[rows],
                logits_processor=only,
                **{"max_length": length + 1} | how,
            )
            texts = [cut(row, ends) for row in ids[:, inputs.shape[1] :].tolist()]
            each = len(texts) // len(rows)
            written |= {row: texts[each * place : each * (place + 1)] for place, row in enumerate(rows)}
        return [text for row in sorted(written) for text in written[row]]


class OnlyBoxes(LogitsProcessor):
    """Leaves of the logits those that go on towards a box as the grammar has it, well ordered or not, then eos."""

    def __init__(self, grammar: BoxGrammar, start: int) -> None:
        """`start`: where the box begins in a row."""
        self.grammar, self.start = grammar, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids [B, R], scores [B, V] -> scores [B, V]; after its end a row can only go on ending."""
        rows = [self.state(row) for row in input_ids[:, self.start :].tolist()]
        alphabet = torch.from_numpy(self.grammar.alphabet).to(scores.device)
        allowed = torch.from_numpy(self.grammar.allowed([state or State() for state in rows])).to(scores.device)
        over = torch.tensor([state is None for state in rows], device=scores.device)
        allowed = torch.where(over[:, None], alphabet == self.grammar.eos, allowed)
        masked = torch.full_like(scores, -torch.inf)
        masked[:, alphabet] = scores[:, alphabet].masked_fill(~allowed, -torch.inf)
        return masked

    def state(self, written: Sequence[int]) -> State | None:
        """Where a row stands; None once it has ended."""
        state = State()
        for token in written:
            if token == self.grammar.eos:
                return None
            state = self.grammar.after(state, token)
        return state


def cut(row: Sequence[int], ends: int) -> Ids:
    """The ids before the first that ends the text."""
    ids = list(row)
    return tuple(ids[: ids.index(ends)] if ends in ids else ids)
