"""The grammar along which nothing but a box can be written."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from opensiglip.data.boxes import BoxFormat
from opensiglip.data.fields.captions import Ids, box_ids
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError


class State(NamedTuple):
    """How far a box is written: the numbers that are whole, and the ids of the one that is being written."""

    done: tuple[int, ...] = ()
    rest: Ids = ()


class BoxGrammar:
    """Four numbers 0..top, then eos. If `ordered` the second corner lies beyond the first: each way ends in a real box.

    It speaks an alphabet of its own, the ids [A] that stand in boxes: masks and logits are over these alone, whatever
    the size of the vocabulary.
    """

    def __init__(self, pipeline: TextPipeline, boxes: BoxFormat, *, ordered: bool = True) -> None:
        """Raises UserError on a tokenizer that does not tell the numbers apart."""
        self.eos, self.top, self.ordered = pipeline.policy.eos_id, boxes.top, ordered
        # The first number stands alone; each of the others brings the separator before it.
        first = {box_ids(pipeline, boxes.mark(value)): value for value in range(boxes.top + 1)}
        between = box_ids(pipeline, boxes.separator)
        self.numbers = [first, {(*between, *ids): value for ids, value in first.items()}]
        self.starts = [{ids[:n] for ids in some for n in range(1, len(ids) + 1)} for some in self.numbers]
        begins = {ids[0] for ids in self.numbers[1]} | {self.eos}
        if len(first) <= boxes.top or any(
            (*ids, token) in starts
            for some, starts in zip(self.numbers, self.starts, strict=True)
            for ids in some
            for token in begins
        ):
            raise UserError(f"the tokenizer does not separate numbers in --boxes '{boxes}'; choose another separator.")
        self.alphabet = np.array(sorted({self.eos}.union(*(ids for some in self.numbers for ids in some))))
        self.places = {token: place for place, token in enumerate(self.alphabet.tolist())}
        self._longer = [self._by_start(some) for some in self.numbers]
        self._end = self.alphabet == self.eos
        self._nothing = np.zeros(len(self.alphabet), bool)
        self._mask = lru_cache(maxsize=4096)(self._going_on)

    def allowed(self, states: Sequence[State]) -> np.ndarray:
        """bool [B, A]: what may follow, of the alphabet."""
        return np.stack([self._allowed(state) for state in states])

    def constrain(self, logits: Tensor, states: Sequence[State]) -> Tensor:
        """logits [B, A] over the alphabet, -inf where an id may not follow."""
        return logits.masked_fill(~torch.from_numpy(self.allowed(states)).to(logits.device), -torch.inf)

    def constrain_vocabulary(self, logits: Tensor, states: Sequence[State]) -> Tensor:
        """logits [B, V] over all ids, -inf where one may not follow."""
        alphabet = torch.from_numpy(self.alphabet).to(logits.device)
        allowed = torch.full_like(logits, -torch.inf)
        allowed[:, alphabet] = self.constrain(logits[:, alphabet], states)
        return allowed

    def after(self, state: State, token: int) -> State:
        """The state one id further on, which was allowed and is not eos."""
        longer = (*state.rest, token)
        if longer in self.starts[min(len(state.done), 1)]:
            return State(state.done, longer)
        # This id begins another number, so the one before has ended.
        return State((*state.done, self.numbers[min(len(state.done), 1)][state.rest]), (token,))

    def ended(self, state: State) -> bool:
        """May nothing but eos follow?"""
        return len(state.done) == 3 and bool((self._allowed(state) == self._end).all())

    def _allowed(self, state: State) -> np.ndarray:
        done, rest = state
        kind, (low, high) = min(len(done), 1), self._range(done)
        going_on = self._mask(rest, kind, low, high) if rest in self._longer[kind] else self._nothing
        value = self.numbers[kind].get(rest)
        if value is None or not low <= value <= high:
            return going_on
        done = (*done, value)  # it is a whole number: what begins after it?
        return going_on | (self._end if len(done) == 4 else self._mask((), 1, *self._range(done)))

    def _range(self, done: Sequence[int]) -> tuple[int, int]:
        """The least and the greatest that the number after those may be."""
        if not self.ordered:
            return 0, self.top
        if len(done) < 2:
            return 0, self.top - 1
        return done[len(done) - 2] + 1, self.top

    def _by_start(self, numbers: dict[Ids, int]) -> dict[Ids, np.ndarray]:
        """For each start of a number, of all that go on from it: [value, the next id's place in the alphabet]."""
        found: dict[Ids, list[tuple[int, int]]] = {}
        for ids, value in numbers.items():
            for size, token in enumerate(ids):
                found.setdefault(ids[:size], []).append((value, self.places[token]))
        return {start: np.array(pairs) for start, pairs in found.items()}

    def _going_on(self, rest: Ids, kind: int, low: int, high: int) -> np.ndarray:
        value, place = self._longer[kind][rest].T
        mask = self._nothing.copy()
        mask[place[(low <= value) & (value <= high)]] = True
        return mask
