"""What writes and weighs texts behind prompts: a decoder, or PaLI's encoder-decoder. Features in, ids out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from opensiglip.data.boxes import BoxFormat
from opensiglip.data.fields.captions import Ids, Target, part_ids
from opensiglip.data.tasks import Form
from opensiglip.data.tasks.task import Part
from opensiglip.errors import UserError
from opensiglip.inference.box_grammar import BoxGrammar
from opensiglip.inference.likelihood import likelihoods
from opensiglip.inference.subject import Subject
from opensiglip.inference.writer import Writer
from opensiglip.models.pali import PaliDecoder
from opensiglip.types import Features


class Prompt(NamedTuple):
    """What a text goes on from: a visible prefix, and the ids that its answer begins with.

    A decoder reads one behind the other; of PaLI the encoder reads the prefix, the decoder writes on.
    """

    prefix: Ids
    given: Ids = ()


@contextmanager
def memory_in_words() -> Iterator[None]:
    """Out of memory, said as what to do."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(
            "the GPU ran out of memory; give fewer images at once, or hide it (CUDA_VISIBLE_DEVICES=) to use the CPU."
        ) from None


class Speaker:
    """A subject's decoder with its text pipeline and its way to write boxes."""

    def __init__(self, subject: Subject) -> None:
        """Raises UserError where there is nothing that writes."""
        decoder = subject.decoder or (PaliDecoder(subject.pali) if subject.pali else None)
        if subject.pipeline is None or decoder is None:
            raise UserError(
                f"{subject.name} has no decoder, so it can't write; give a run of cap, cappa, locca, siglip2 or tasks."
            )
        self.subject, self.pipeline, self.boxes = subject, subject.pipeline, subject.boxes or BoxFormat()
        self.decoder, self.pali = decoder, subject.pali
        self.writer = Writer(decoder, self.pipeline.policy.pad_id, self.pipeline.policy.eos_id)

    @cached_property
    def grammar(self) -> BoxGrammar:
        """Nothing but well-formed, well-ordered boxes."""
        return BoxGrammar(self.pipeline, self.boxes)

    def prompt(self, prefix: Sequence[Part], given: Sequence[Part] = (), width: float = 1, height: float = 1) -> Prompt:
        """The parts of a question as ids, as training laid them out; boxes are in pixels of an image of that size."""
        form = Form(self.boxes, width, height)
        return Prompt(part_ids(prefix, form, self.pipeline), part_ids(given, form, self.pipeline))

    @memory_in_words()
    @torch.no_grad()
    def write(
        self, features: Features, prompts: Sequence[Prompt], *, grammar: BoxGrammar | None = None, **how: Any
    ) -> list[Ids]:
        """The ids behind each image's prompt, as `Writer.write` finds them. Raises UserError if one leaves no room."""
        with self.subject.autocast():
            memory, valid, starts = self._read(features, prompts)
            return self.writer.write(memory, starts, valid=valid, grammar=grammar, **how)

    @memory_in_words()
    @torch.no_grad()
    def weigh(self, features: Features, said: Sequence[tuple[int, Prompt, Ids]]) -> list[float]:
        """log p of the ids behind their prompt, for each (image, prompt, ids)."""
        with self.subject.autocast():
            if self.pali is None:
                asked = [(image, Target(prompt.prefix + prompt.given, ids)) for image, prompt, ids in said]
                return likelihoods(self.decoder, features.tokens, asked, self.pipeline, features.valid)
            seen = rows(features, [image for image, _, _ in said])
            memory, valid, starts = self._read(seen, [prompt for _, prompt, _ in said])
            asked = [
                (row, Target(start, ids)) for row, (start, (_, _, ids)) in enumerate(zip(starts, said, strict=True))
            ]
            return likelihoods(self.decoder, memory, asked, self.pipeline, valid)

    def _read(self, features: Features, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor | None, list[Ids]]:
        """What the decoder looks at, and the ids that each text begins with."""
        if self.pali is None:
            return features.tokens, features.valid, [prompt.prefix + prompt.given for prompt in prompts]
        if (size := max(len(prompt.prefix) for prompt in prompts)) > self.pali.length:
            raise UserError(
                f"a question of {size} tokens is longer than this model reads, {self.pali.length}; shorten it."
            )
        ids = [torch.tensor(prompt.prefix, dtype=torch.int64) for prompt in prompts]
        padded = pad_sequence(ids, batch_first=True, padding_value=self.pali.pad_id)
        states, valid = self.pali.read(features.tokens, padded.to(features.tokens.device))
        return states, valid, [prompt.given for prompt in prompts]


def rows(features: Features, places: Sequence[int]) -> Features:
    """Those rows of the features, one of them several times if asked."""
    return Features(None, features.tokens[places], None if features.valid is None else features.valid[places])
