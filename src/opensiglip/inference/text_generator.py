"""`TextGenerator`: a trained model that writes and scores texts about encoded images, by decoder, CoCa or PaLI."""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_iou

from opensiglip.data.boxes import BoxFormat
from opensiglip.data.example import Box
from opensiglip.data.fields.captions import Ids, Target, box_ids, part_ids
from opensiglip.data.tasks import Form
from opensiglip.data.tasks.task import Part
from opensiglip.data.text import TextPipeline
from opensiglip.inference.box_grammar import BoxGrammar
from opensiglip.inference.capabilities import caption_words, unchecked_caption_words
from opensiglip.inference.device import memory_errors
from opensiglip.inference.encoder import Encoder
from opensiglip.inference.generate import GREEDY, Decoding, TextDecoder, beam_search, generate
from opensiglip.inference.likelihood import blind_likelihoods, likelihoods
from opensiglip.models.coca import Multimodal
from opensiglip.models.decoder import Decoder
from opensiglip.models.pali import Pali, PaliDecoder
from opensiglip.types import Features

SCORED = 512  # prompts that PaLI's encoder reads at once
DRAWN = 32  # boxes of which one is the answer
LOCATED = 32  # phrases whose boxes are drawn at once
SAME = 0.5  # IoU from which boxes that are drawn mean the same


class Prompt(NamedTuple):
    """What a text goes on from: a visible prefix, and the ids that its answer begins with.

    A decoder gets one behind the other; of PaLI the encoder gets the prefix, the decoder goes on from what is given.
    """

    prefix: Ids
    given: Ids = ()


class TextGenerator(Encoder):
    """An `Encoder` with the model's decoder: texts are written and scored behind prompts."""

    @property
    def decoder(self) -> Decoder | Multimodal | None:
        """The decoder that attends to image tokens; None where there is none, or PaLI's encoder-decoder."""
        return self.pretrained.model.decoder

    @property
    def pali(self) -> Pali | None:
        """PaLI's encoder-decoder, in a decoder's place."""
        return self.pretrained.model.pali

    @property
    def has_decoder(self) -> bool:
        """Does it write texts, by a decoder or PaLI's encoder-decoder?"""
        return self.decoder is not None or self.pali is not None

    @cached_property
    def grammar(self) -> BoxGrammar:
        """Nothing but well-formed boxes whose second corner lies beyond the first."""
        return BoxGrammar(self._pipeline, self._boxes)

    def with_decoder(self, decoder: Decoder, pipeline: TextPipeline, boxes: BoxFormat, tasks: tuple[str, ...]) -> Self:
        """The same image tower under another decoder, without a text tower."""
        parts = {"decoder": decoder, "pali": None, "text": None}
        return self._with(parts, pipeline=pipeline, boxes=boxes, tasks=tasks)

    def prompt(self, prefix: Sequence[Part], given: Sequence[Part] = (), width: float = 1, height: float = 1) -> Prompt:
        """The parts of a question as ids, as training laid them out; boxes are in pixels of an image of that size."""
        form = Form(self._boxes, width, height)
        return Prompt(part_ids(prefix, form, self._pipeline), part_ids(given, form, self._pipeline))

    def caption_prompt(self, language: str | None = None) -> Prompt:
        """What a caption goes on from. Raises UserError on a language that can't be had."""
        return self.prompt(caption_words(self.pretrained, language))

    def unchecked_caption_prompt(self, language: str) -> Prompt:
        """What a caption in that language goes on from, seen in training or not: any language can be measured."""
        return self.prompt(unchecked_caption_words(self.tasks, language, pali=self.pali is not None))

    def locate_prompt(self, phrase: str) -> Prompt:
        """What the box of a phrase goes on from: "ARef: phrase :"."""
        return self.prompt(("ARef:",), (phrase, ":"))

    def describe_prompt(self, box: Box, width: float, height: float) -> Prompt:
        """What the phrase of a box goes on from, in pixels of an image of that size: "GCap: box :"."""
        return self.prompt(("GCap:",), (box, ":"), width, height)

    def generate(
        self,
        features: Features,
        prompts: Sequence[Prompt],
        decoding: Decoding = GREEDY,
        *,
        images: Sequence[int] | None = None,
        grammar: BoxGrammar | None = None,
        each: int | None = None,
    ) -> list[Ids]:
        """The ids behind each prompt, given encoded images: prompt i is about image `images[i]`, by default image i.

        Empty where a prompt leaves no room. With `each`, so many of every prompt (`generate.generate`).
        """
        with memory_errors(), self.autocast():
            if self.pali is None:
                starts = [prompt.prefix + prompt.given for prompt in prompts]
                owners = None if images is None else list(images)
                if owners is not None:
                    features, owners = used_rows(features, owners)
                memory, valid = features.tokens, features.valid
            else:
                memory, valid, starts = self._condition(features, prompts, images)
                owners = None
            return generate(
                self._decoder, memory, starts, self._pipeline, decoding,
                each=each, grammar=grammar, owners=owners, valid=valid,
            )  # fmt: skip

    def beams(
        self, features: Features, prompts: Sequence[Prompt], width: int, *, images: Sequence[int] | None = None
    ) -> list[list[str]]:
        """Behind each prompt the `width` texts of a beam search, likeliest first; images as `generate` has them."""
        memory, valid, starts = self._condition(features, prompts, images)
        with memory_errors(), self.autocast():
            found = beam_search(self._decoder, memory, starts, self._pipeline, width, count=width, valid=valid)
        return [[self._pipeline.text(ids) for ids in some] for some in found]

    def write_boxes(
        self, features: Features, prompts: Sequence[Prompt], *, images: Sequence[int] | None = None
    ) -> list[tuple[Ids, float]]:
        """The ids of the box behind each prompt, about images as `generate` has them, and its score in 0..1.

        `DRAWN` boxes are drawn. That of the highest mean IoU with all is the centre (minimum Bayes risk); the answer is
        the mean of those that overlap it by `SAME`. The likeliest number at each step, one by one, makes a box that
        as a whole may be unlikely (measured: docs/how-to/photographs.md). The score is the share of those that were
        drawn.
        """
        places, written = list(range(len(prompts)) if images is None else images), list[tuple[Ids, float]]()
        for at in range(0, len(prompts), LOCATED):
            some = prompts[at : at + LOCATED]
            drawn = self.generate(features, some, images=places[at : at + LOCATED], grammar=self.grammar, each=DRAWN)
            written += [self._agreed(drawn[first : first + DRAWN]) for first in range(0, len(drawn), DRAWN)]
        return written

    def _agreed(self, drawn: Sequence[Ids]) -> tuple[Ids, float]:
        """The ids and score of the box on which boxes agree (`write_boxes`); where none is a box, the first and 0."""
        read = {ids: self._boxes.read(self._pipeline.text(ids), 1, 1) for ids in set(drawn)}
        boxes = torch.tensor([box for ids in drawn if (box := read[ids])], dtype=torch.float64)
        if not len(boxes):
            return drawn[0], 0.0
        overlap = box_iou(boxes, boxes)
        agree = boxes[overlap[overlap.mean(1).argmax()] >= SAME]
        x1, y1, x2, y2 = agree.mean(0).tolist()
        return box_ids(self._pipeline, self._boxes.write((x1, y1, x2, y2), 1, 1)), len(agree) / len(drawn)

    def score(self, features: Features, asked: Sequence[tuple[int, Prompt, Ids]]) -> list[float]:
        """log p of the ids behind their prompt, for each (image, prompt, ids)."""
        with memory_errors(), self.autocast():
            if self.pali is None:
                texts = [(image, Target(prompt.prefix + prompt.given, ids)) for image, prompt, ids in asked]
                return likelihoods(self._decoder, features.tokens, texts, self._pipeline, features.valid)
            scores: list[float] = []
            for at in range(0, len(asked), SCORED):
                images, prompts, texts_ids = zip(*asked[at : at + SCORED], strict=True)
                memory, valid, starts = self._condition(features, prompts, images)
                texts = [(row, Target(*pair)) for row, pair in enumerate(zip(starts, texts_ids, strict=True))]
                scores += likelihoods(self._decoder, memory, texts, self._pipeline, valid)
            return scores

    def score_blind(self, features: Features, asked: Sequence[tuple[int, Prompt, Ids]]) -> list[float]:
        """`score` without the image: the log of the mean p given a few of the other images."""
        return blind_likelihoods(lambda some: self.score(features, some), asked, len(features.tokens))

    def target_ids(self, prompt: Prompt, text: str) -> Ids:
        """The ids of a text behind a prompt, as training had it: cut to the length, with its end."""
        before = len(prompt.given) if self.pali else len(prompt.prefix) + len(prompt.given)
        return (
            *self._pipeline.ids(f" {text}")[: max(0, self._decoder.length - before - 1)],
            self._pipeline.policy.eos_id,
        )

    @property
    def _decoder(self) -> TextDecoder:
        decoder = self.decoder if self.pali is None else PaliDecoder(self.pali)
        assert decoder is not None, "`require` comes first"
        return decoder

    @property
    def _pipeline(self) -> TextPipeline:
        assert self.pipeline is not None, "`require` comes first"
        return self.pipeline

    @property
    def _boxes(self) -> BoxFormat:
        return self.boxes or BoxFormat()

    @torch.no_grad()
    def _condition(
        self, features: Features, prompts: Sequence[Prompt], images: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor | None, list[Ids]]:
        """Of each prompt what the decoder attends to [K, N, M], which of it is no padding, and how its text begins."""
        if images is not None:
            features = select_rows(features, images)
        if self.pali is None:
            return features.tokens, features.valid, [prompt.prefix + prompt.given for prompt in prompts]
        ids = [torch.tensor(prompt.prefix, dtype=torch.int64) for prompt in prompts]
        padded = pad_sequence(ids, batch_first=True, padding_value=self.pali.pad_id)
        with memory_errors(), self.autocast():
            states, valid = self.pali.read(features.tokens, padded.to(features.tokens.device))
        return states, valid, [prompt.given for prompt in prompts]


def select_rows(features: Features, rows: Sequence[int]) -> Features:
    """The tokens of those images, in that order, some perhaps several times."""
    some = list(rows)
    return Features(None, features.tokens[some], None if features.valid is None else features.valid[some])


def used_rows(features: Features, images: Sequence[int]) -> tuple[Features, list[int]]:
    """The tokens of the images that are named, each once, and for each name where its image's now are."""
    used, owners = torch.tensor(images).unique(return_inverse=True)
    return select_rows(features, used.tolist()), owners.tolist()
