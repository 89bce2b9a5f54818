"""`opensiglip.load`: a trained model, to be asked in Python. Boxes are x1, y1, x2, y2 in pixels of the image given."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from math import exp
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import nms

from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.data.boxes import BoxFormat
from opensiglip.data.example import Box, BrokenExample
from opensiglip.data.fields.captions import Ids, Target, part_ids
from opensiglip.data.sources.box_layout import BoxLayout
from opensiglip.data.tasks import Form, Task, parse_question
from opensiglip.data.tasks.task import Part
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.inference.answers import Answer, Found
from opensiglip.inference.box_grammar import BoxGrammar
from opensiglip.inference.capabilities import caption_words, check_language, require, trained_tasks
from opensiglip.inference.encoder import Encoder, best_device, memory_errors
from opensiglip.inference.generate import GREEDY, Decoding, TextDecoder, beam_search, generate
from opensiglip.inference.images import ImageInputs, is_single, load_images
from opensiglip.inference.likelihood import likelihoods, target
from opensiglip.models.coca import Multimodal
from opensiglip.models.decoder import Decoder
from opensiglip.models.pali import Pali, PaliDecoder
from opensiglip.types import Features

OVERLAP = 0.5  # proposals that overlap more are of one thing
SCORED = 512  # prompts that PaLI's encoder reads at once
Result = TypeVar("Result")


class Prompt(NamedTuple):
    """What a text goes on from: a visible prefix, and the ids that its answer begins with.

    A decoder gets one behind the other; of PaLI the encoder gets the prefix, the decoder goes on from what is given.
    """

    prefix: Ids
    given: Ids = ()


def load(spec: str | Path) -> "Predictor":
    """A run, its model/ folder, a hub id, or another library's model as `opensiglip eval` names it.

    It runs on the GPU where there is one, in bfloat16 where that pays. Raises UserError naming what can't be read.
    """
    return Predictor(Pretrained.open(spec), device=best_device())


class Predictor(Encoder):
    """A trained model to be asked. One image gives one answer, a list of them a list of answers.

    Images are paths, PIL images, uint8 arrays [H, W, 3] or tensors [3, H, W]. Keywords that a method does not know are
    those of `Decoding`: `num_beams=4`, or `do_sample=True, top_p=0.9, seed=0`.
    """

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
        """Has it a decoder that attends to image tokens?"""
        return self.decoder is not None

    @cached_property
    def grammar(self) -> BoxGrammar:
        """Nothing but well-formed boxes whose second corner lies beyond the first."""
        return BoxGrammar(self._pipeline, self._boxes)

    def with_decoder(self, decoder: Decoder, pipeline: TextPipeline, boxes: BoxFormat, tasks: tuple[str, ...]) -> Self:
        """The same image tower under another decoder, without a text tower."""
        parts = {"decoder": decoder, "pali": None, "text": None}
        return self._with(parts, pipeline=pipeline, boxes=boxes, tasks=tasks)

    def classify(self, images: ImageInputs, labels: Sequence[str]) -> Any:
        """{label: probability}, likeliest first.

        With SigLIP's text tower each label's own probability, which need not sum to 1; with CLIP's, or a decoder alone,
        shares of 1: a decoder scores each label as a caption (CapPa's way; recipes.md 2.8). Raises UserError.
        """
        labels = list(dict.fromkeys(labels))
        if not labels:
            raise UserError("no labels to classify by; give at least one.")
        features = self._encode(load_images(images))
        if features.pooled is not None and self.logit_scale is not None:
            cosines = F.normalize(features.pooled, dim=-1) @ self.encode_texts(labels).T
            logits, bias = exp(self.logit_scale) * cosines, self.logit_bias
            shares = logits.softmax(-1) if bias is None else (logits + bias).sigmoid()
        else:
            require(self.pretrained, "classify", ("cap", "caption"))
            prompt = self.caption_prompt()
            texts = [target(self._pipeline, prompt.prefix, label).target for label in labels]
            asked = [(image, prompt, text) for image in range(len(features.tokens)) for text in texts]
            shares = torch.tensor(self.score(features, asked)).view(-1, len(labels)).softmax(-1)
        answers = [
            dict(sorted(zip(labels, row, strict=True), key=lambda pair: -pair[1])) for row in shares.float().tolist()
        ]
        return _like(images, answers)

    def caption(self, images: ImageInputs, *, language: str | None = None, **decoding: Any) -> Any:
        """What stands on the image, in the words of its training.

        `language`, such as "de", is chosen where training marked it (the task "caption LANGUAGE"); elsewhere the one
        language that the model knows passes. Raises UserError on another, and without a decoder.
        """
        require(self.pretrained, "caption", ("cap", "caption"))
        prompt = self.caption_prompt(language)
        features = self._encode(load_images(images))
        texts = self._write(features, [prompt] * len(features.tokens), Decoding.parse(decoding))
        return _like(images, [self._pipeline.text(ids) for ids in texts])

    def locate(self, images: ImageInputs, phrase: str, **decoding: Any) -> Any:
        """Where the phrase is: `Found`, always with a box, so look at its score. Raises UserError."""
        require(self.pretrained, "locate", ("aref",))
        pixels = load_images(images)
        asked = [(phrase, self.locate_prompt(phrase))] * len(pixels)
        return _like(images, self._locate(self._encode(pixels), asked, pixels, Decoding.parse(decoding)))

    def describe(self, images: ImageInputs, box: Sequence[float], **decoding: Any) -> Any:
        """What stands in the box x1, y1, x2, y2 in pixels of the image. Raises UserError."""
        require(self.pretrained, "describe a box", ("gcap",))
        pixels, prompts = load_images(images), []
        for image in pixels:
            height, width = image.shape[1:]
            try:
                fitted = BoxLayout().fit(BoxLayout().read([float(edge) for edge in box]), width, height)
            except (BrokenExample, TypeError, ValueError) as reason:
                raise UserError(
                    f"{list(box)} is no box of an image of {width} x {height} pixels ({reason}); give x1, y1, x2, y2."
                ) from None
            prompts.append(self.describe_prompt(fitted, width, height))
        texts = self._write(self._encode(pixels), prompts, Decoding.parse(decoding))
        return _like(images, [self._pipeline.text(ids) for ids in texts])

    def propose(self, images: ImageInputs, count: int = 5) -> Any:
        """Up to `count` phrases with boxes, best first: phrases by beam behind "ARef:", then the box of each.

        Of proposals that overlap the better one stays. LocCa proposes from that prompt; the two steps are ours.
        """
        require(self.pretrained, "propose", ("aref",))
        pixels = load_images(images)
        features = self._encode(pixels)
        start, colon = self.prompt(("ARef:",)), self._pipeline.ids(" :")
        longest = max(len(ids) for some in self.grammar.numbers for ids in some)
        memory, valid, starts = self._condition(features, [start] * len(pixels))
        with memory_errors(), self.autocast():
            phrases = beam_search(
                self._decoder, memory, starts, self._pipeline, 2 * count, count=2 * count, valid=valid,
                most=self._decoder.length - len(starts[0]) - len(colon) - 4 * longest,  # colon and box still have room
                end=colon[-1], forbidden=[self._pipeline.policy.eos_id],
            )  # fmt: skip
        answers = []
        for number, (image, some) in enumerate(zip(pixels, phrases, strict=True)):
            # Of a colon of several ids only the last ended the phrase.
            ended = [ids[: len(ids) + 1 - len(colon)] if ids[1 - len(colon) :] == colon[:-1] else ids for ids in some]
            texts = {text: ids for ids in reversed(ended) if (text := self._pipeline.text(ids))}
            asked = [(text, Prompt(start.prefix, (*ids, *colon))) for text, ids in texts.items()]
            alone = select_rows(features, [number])
            found = self._locate(alone, asked, [image] * len(asked), GREEDY, [0] * len(asked))
            scored = [(0, start, (*ids, *colon)) for ids in texts.values()]
            both = [
                replace(box, score=box.score * exp(total / len(ids)))
                for box, total, (_, _, ids) in zip(found, self.score(alone, scored), scored, strict=True)
            ]
            answers.append(without_overlaps(both)[:count])
        return _like(images, answers)

    def ask(
        self, images: ImageInputs, question: str, *, task: Task | None = None, ordered: bool = True, **decoding: Any
    ) -> Any:
        """`Answer`: what the decoder writes to a question in the words of a task that it was trained on.

        Such as "answer en what is left of the fox?", "detect fox ; apple", "ARef: a fox :", "GCap: 1 2 3 4 :" (numbers
        of the model's own box format). `task` is a `Task` of one's own, whose `read` then says what the words mean;
        without `ordered` a box's corners may come in any order. Raises UserError on a question of no trained task.
        """
        require(self.pretrained, "answer")
        pixels = load_images(images)
        parsed = parse_question(question, [task] if task else trained_tasks(self.pretrained), Form(self._boxes, 1, 1))
        if parsed.task.name == "caption":
            check_language(self.pretrained, str(parsed.prefix[0]).split()[1].lower())
        prompt, grammar = self.prompt(parsed.prefix, parsed.given), None
        if parsed.task.measure == "box" and parsed.is_whole:
            grammar = self.grammar if ordered else BoxGrammar(self._pipeline, self._boxes, ordered=False)
        texts = self._write(self._encode(pixels), [prompt] * len(pixels), Decoding.parse(decoding), grammar=grammar)
        answers = []
        for ids, image in zip(texts, pixels, strict=True):
            text, (height, width) = self._pipeline.text(ids), image.shape[1:]
            value = parsed.task.read(text, Form(self._boxes, width, height)) if parsed.is_whole else text
            answers.append(Answer(text, value))
        return _like(images, answers)

    def prompt(self, prefix: Sequence[Part], given: Sequence[Part] = (), width: float = 1, height: float = 1) -> Prompt:
        """The parts of a question as ids, as training laid them out; boxes are in pixels of an image of that size."""
        form = Form(self._boxes, width, height)
        return Prompt(part_ids(prefix, form, self._pipeline), part_ids(given, form, self._pipeline))

    def caption_prompt(self, language: str | None = None) -> Prompt:
        """What a caption goes on from. Raises UserError on a language that can't be had."""
        return self.prompt(caption_words(self.pretrained, language))

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
    ) -> list[Ids]:
        """The ids behind each prompt, given encoded images: prompt i is about image `images[i]`, by default image i.

        Empty where a prompt leaves no room. Raises UserError where PaLI's encoder can't take a prompt.
        """
        with memory_errors(), self.autocast():
            if self.pali is None:
                starts = [prompt.prefix + prompt.given for prompt in prompts]
                memory, valid, owners = features.tokens, features.valid, images
            else:
                memory, valid, starts = self._condition(features, prompts, images)
                owners = None
            return generate(
                self._decoder, memory, starts, self._pipeline, decoding, grammar=grammar, owners=owners, valid=valid
            )

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
        if (size := max(len(prompt.prefix) for prompt in prompts)) > self.pali.length:
            raise UserError(
                f"a question of {size} tokens is longer than this model reads, {self.pali.length}; shorten it."
            )
        ids = [torch.tensor(prompt.prefix, dtype=torch.int64) for prompt in prompts]
        padded = pad_sequence(ids, batch_first=True, padding_value=self.pali.pad_id)
        with memory_errors(), self.autocast():
            states, valid = self.pali.read(features.tokens, padded.to(features.tokens.device))
        return states, valid, [prompt.given for prompt in prompts]

    def _write(
        self,
        features: Features,
        prompts: Sequence[Prompt],
        decoding: Decoding,
        *,
        images: Sequence[int] | None = None,
        grammar: BoxGrammar | None = None,
    ) -> list[Ids]:
        """`generate`; raises UserError where a prompt leaves no room."""
        length = self._decoder.length
        longest = max(len(prompt.given) if self.pali else len(prompt.prefix) + len(prompt.given) for prompt in prompts)
        if longest >= length:
            raise UserError(
                f"a text of {longest} tokens leaves no room: this model's have at most {length}; shorten it."
            )
        return self.generate(features, prompts, decoding, images=images, grammar=grammar)

    def _locate(
        self,
        features: Features,
        asked: Sequence[tuple[str, Prompt]],
        pixels: Sequence[Tensor],
        decoding: Decoding,
        images: Sequence[int] | None = None,
    ) -> list[Found]:
        """A box for each phrase, which goes on from the prompt beside it."""
        prompts = [prompt for _, prompt in asked]
        texts = self._write(features, prompts, decoding, images=images, grammar=self.grammar)
        boxes = []
        for (phrase, _), ids, image in zip(asked, texts, pixels, strict=True):
            height, width = image.shape[1:]
            box = self._boxes.read(self._pipeline.text(ids), width, height)
            if box is None:  # the grammar admits nothing else, unless the room ends before the box does
                raise UserError(f"the phrase {phrase!r} leaves no room for a box; shorten it.")
            boxes.append(box)
        places = range(len(asked)) if images is None else images
        totals = self.score(features, list(zip(places, prompts, texts, strict=True)))
        likely = [exp(total / len(ids)) for total, ids in zip(totals, texts, strict=True)]
        return [Found(phrase, box, score) for (phrase, _), box, score in zip(asked, boxes, likely, strict=True)]


def select_rows(features: Features, rows: Sequence[int]) -> Features:
    """The tokens of those images, in that order, some perhaps several times."""
    some = list(rows)
    return Features(None, features.tokens[some], None if features.valid is None else features.valid[some])


def without_overlaps(found: Sequence[Found]) -> list[Found]:
    """The best first, without those that overlap a better one."""
    if not found:
        return []
    boxes, scores = torch.tensor([[*f.box, f.score] for f in found], dtype=torch.float64).split([4, 1], 1)
    return [found[place] for place in nms(boxes, scores[:, 0], OVERLAP).tolist()]


def _like(images: ImageInputs, answers: list[Result]) -> Result | list[Result]:
    """One answer for a single image, a list for several."""
    return answers[0] if is_single(images) else answers
