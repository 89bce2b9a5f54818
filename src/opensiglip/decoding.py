"""Greedy decoding of many texts at once, free or along a grammar that admits only boxes."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from opensiglip.data.boxes import BoxFormat
from opensiglip.data.captions import Ids, box_ids
from opensiglip.data.text import TextPipeline
from opensiglip.models.coca import Multimodal
from opensiglip.models.decoder import Decoder


class BoxGrammar:
    """Four numbers 0..top, then eos. The second corner lies beyond the first, so every way on ends in a real box."""

    def __init__(self, pipeline: TextPipeline, boxes: BoxFormat) -> None:
        self.eos, self.top = pipeline.policy.eos_id, boxes.top
        # The first number stands alone; each of the others brings the separator before it.
        first = {box_ids(pipeline, boxes.mark(value)): value for value in range(boxes.top + 1)}
        between = box_ids(pipeline, boxes.separator)
        self.numbers = [first, {(*between, *ids): value for ids, value in first.items()}]
        self.starts = [{ids[:n] for ids in some for n in range(1, len(ids) + 1)} for some in self.numbers]
        self._following = lru_cache(maxsize=None)(self._numbers_going_on)

    def allowed(self, so_far: Ids) -> set[int]:
        """The ids that may follow those generated so far."""
        done: list[int] = []
        rest: Ids = ()
        for token in so_far:
            if (*rest, token) in self.starts[min(len(done), 1)]:
                rest = (*rest, token)
            else:  # this id begins another number, so the one before has ended
                done.append(self.numbers[min(len(done), 1)][rest])
                rest = (token,)
        following = set(self._following(rest, min(len(done), 1), *self._range(done)))
        value = self.numbers[min(len(done), 1)].get(rest)
        low, high = self._range(done)
        if value is not None and low <= value <= high:  # a whole number: what begins after it?
            done.append(value)
            following |= {self.eos} if len(done) == 4 else self._following((), 1, *self._range(done))
        return following

    def _range(self, done: Sequence[int]) -> tuple[int, int]:
        if len(done) < 2:
            return 0, self.top - 1
        return done[len(done) - 2] + 1, self.top

    def _numbers_going_on(self, rest: Ids, kind: int, low: int, high: int) -> frozenset[int]:
        size = len(rest)
        return frozenset(
            ids[size]
            for ids, value in self.numbers[kind].items()
            if low <= value <= high and len(ids) > size and ids[:size] == rest
        )


@torch.no_grad()
def greedy(
    decoder: Decoder | Multimodal,
    memory: Tensor,
    prefixes: Sequence[Ids],
    pipeline: TextPipeline,
    grammar: BoxGrammar | None = None,
) -> list[Ids]:
    """The likeliest next id, again and again, until eos or the decoder's length; without prefix and eos.

    memory [B, N, D]: image tokens of each of the B prefixes. With a grammar only what it allows is chosen.
    """
    device, length, pad, eos = memory.device, decoder.length, pipeline.policy.pad_id, pipeline.policy.eos_id
    texts = [list(prefix) for prefix in prefixes]
    live = [row for row, text in enumerate(texts) if len(text) < length]
    while live:
        width = max(len(texts[row]) for row in live) + 1
        inputs = torch.full((len(live), width), pad)  # shifted right behind pad, the start token
        for place, row in enumerate(live):
            inputs[place, 1 : 1 + len(texts[row])] = torch.tensor(texts[row], dtype=torch.int64)
        ends = torch.tensor([len(texts[row]) for row in live], device=device)
        hidden = decoder(
            inputs.to(device),
            torch.arange(width, device=device).expand(len(live), width),
            torch.zeros(len(live), width, dtype=torch.int64, device=device),
            torch.zeros(len(live), width, dtype=torch.bool, device=device),
            memory[torch.tensor(live, device=device)],
        )
        logits = decoder.vocabulary(hidden[torch.arange(len(live), device=device), ends]).float()
        if grammar is not None:
            forbidden = torch.ones(logits.shape, dtype=torch.bool)
            for place, row in enumerate(live):
                forbidden[place, list(grammar.allowed(tuple(texts[row][len(prefixes[row]) :])))] = False
            logits = logits.masked_fill(forbidden.to(device), -torch.inf)
        for row, token in zip(live, logits.argmax(-1).tolist(), strict=True):
            texts[row].append(token)
        live = [row for row in live if texts[row][-1] != eos and len(texts[row]) < length]
    return [
        tuple(text[len(prefix) : -1] if text[-1] == eos else text[len(prefix) :])
        for text, prefix in zip(texts, prefixes, strict=True)
    ]
