"""`opensiglip.load`: a trained model for use in Python. Boxes are x1, y1, x2, y2 in pixels of the given image."""

from collections.abc import Sequence
from dataclasses import replace
from math import exp
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import nms

from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.data.example import BrokenExample
from opensiglip.data.fields.captions import Ids
from opensiglip.data.sources.box_layout import BoxLayout
from opensiglip.data.tasks import Form, Task, parse_question
from opensiglip.errors import UserError
from opensiglip.inference.answers import Answer, Found
from opensiglip.inference.box_grammar import BoxGrammar
from opensiglip.inference.capabilities import check_language, require, trained_tasks
from opensiglip.inference.device import best_device, memory_errors
from opensiglip.inference.generate import Decoding, beam_search
from opensiglip.inference.images import ImageInputs, is_single, load_images
from opensiglip.inference.rerank import rerank as reranked
from opensiglip.inference.text_generator import Prompt, TextGenerator, select_rows
from opensiglip.types import Features

OVERLAP = 0.5  # proposals that overlap more count as one object
Result = TypeVar("Result")


def load(spec: str | Path) -> "Predictor":
    """Load a run, its model/ folder, a hub id, or another library's model as `opensiglip eval` names it.

    It runs on the GPU if there is one, in bfloat16 where that is faster. Raises UserError if it can't be read.
    """
    return Predictor(Pretrained.open(spec), device=best_device())


class Predictor(TextGenerator):
    """A trained model that answers questions. One image gives one answer, a list of images a list of answers.

    Images are paths, PIL images, uint8 arrays [H, W, 3] or tensors [3, H, W]. Further keywords of a method are
    those of `Decoding`: `num_beams=4`, or `do_sample=True, top_p=0.9, seed=0`.
    """

    def classify(self, images: ImageInputs, labels: Sequence[str]) -> Any:
        """The probability of each label, {label: probability}, most probable first.

        With SigLIP's text tower each label has an independent probability, so they need not sum to 1. With CLIP's text
        tower, or only a decoder, they sum to 1; a decoder scores each label as a caption (CapPa). Raises UserError.
        """
        labels = [labels] if isinstance(labels, str) else list(dict.fromkeys(labels))
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
            texts = [self.target_ids(prompt, label) for label in labels]
            asked = [(image, prompt, text) for image in range(len(features.tokens)) for text in texts]
            shares = torch.tensor(self.score(features, asked)).view(-1, len(labels)).softmax(-1)
        answers = [
            dict(sorted(zip(labels, row, strict=True), key=lambda pair: -pair[1])) for row in shares.float().tolist()
        ]
        return _like(images, answers)

    def caption(
        self, images: ImageInputs, *, language: str | None = None, rerank: "Predictor | None" = None, **decoding: Any
    ) -> Any:
        """A caption of the image.

        `rerank` is a model with a text tower, which may be this one: of eight texts of a beam search the one is chosen
        that also fits the image by that model's cosine (inference/rerank.py).

        `language`, such as "de", selects the language if the model was trained with language prefixes (the task
        "caption LANGUAGE"); otherwise only the model's single language is accepted. Raises UserError on another
        language, and without a decoder.
        """
        require(self.pretrained, "caption", ("cap", "caption"))
        prompt, pixels = self.caption_prompt(language), load_images(images)
        prompts, features = [prompt] * len(pixels), self._encode(pixels)
        if rerank is None:
            texts = self._write(features, prompts, Decoding.parse(decoding))
            return _like(images, [self._pipeline.text(ids) for ids in texts])
        if decoding:
            raise UserError(f"rerank chooses among the texts of a beam search; leave out {', '.join(decoding)}.")
        self._check_room(prompts)
        return _like(images, reranked(self, features, prompts, rerank, rerank.embed_images(pixels)))

    def locate(self, images: ImageInputs, phrase: str, **decoding: Any) -> Any:
        """The place of the phrase as `Found`, always with a box, so check its score. Raises UserError.

        Without keywords of `Decoding` the box is the agreement of boxes drawn from the decoder (`write_boxes`).
        """
        require(self.pretrained, "locate", ("aref",))
        pixels = load_images(images)
        asked = [(phrase, self.locate_prompt(phrase))] * len(pixels)
        return _like(
            images, self._locate(self._encode(pixels), asked, pixels, Decoding.parse(decoding) if decoding else None)
        )

    def describe(self, images: ImageInputs, box: Sequence[float], **decoding: Any) -> Any:
        """A description of the box x1, y1, x2, y2 in pixels of the image. Raises UserError."""
        require(self.pretrained, "describe a box", ("gcap",))
        pixels, prompts = load_images(images), []
        for image in pixels:
            height, width = image.shape[1:]
            try:
                fitted = BoxLayout().fit(BoxLayout().read([float(edge) for edge in box]), width, height)
            except (BrokenExample, TypeError, ValueError) as reason:
                raise UserError(
                    f"{list(box)} is not a box of an image of {width} x {height} pixels ({reason}); give x1, y1, x2, "
                    "y2."
                ) from None
            prompts.append(self.describe_prompt(fitted, width, height))
        texts = self._write(self._encode(pixels), prompts, Decoding.parse(decoding))
        return _like(images, [self._pipeline.text(ids) for ids in texts])

    def propose(self, images: ImageInputs, count: int = 5) -> Any:
        """Up to `count` phrases with boxes, best first: phrases by beam search after "ARef:", then the box of each.

        Of overlapping proposals the better one is kept. LocCa proposes from that prompt; the two steps are ours.
        """
        require(self.pretrained, "propose", ("aref",))
        if count < 1:
            raise UserError(f"count={count} is below 1.")
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
        answers: list[Any] = []
        for number, (image, some) in enumerate(zip(pixels, phrases, strict=True)):
            # If the colon has several ids, only the last one ended the phrase.
            ended = [ids[: len(ids) + 1 - len(colon)] if ids[1 - len(colon) :] == colon[:-1] else ids for ids in some]
            texts = {text: ids for ids in reversed(ended) if (text := self._pipeline.text(ids))}
            if not texts:  # an untrained decoder may write nothing but the colon
                answers.append([])
                continue
            asked = [(text, Prompt(start.prefix, (*ids, *colon))) for text, ids in texts.items()]
            alone = select_rows(features, [number])
            found = self._locate(alone, asked, [image] * len(asked), images=[0] * len(asked))
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
        """The decoder's `Answer` to a question in the form of a task that it was trained on.

        Such as "answer en what is left of the fox?", "detect fox ; apple", "ARef: a fox :", "GCap: 1 2 3 4 :" (numbers
        of the model's own box format). `task` is a `Task` of your own, whose `read` then parses the text;
        without `ordered` a box's corners may come in any order. Raises UserError if no trained task has this form.
        """
        require(self.pretrained, "answer")
        pixels = load_images(images)
        parsed = parse_question(question, [task] if task else trained_tasks(self.pretrained), Form(self._boxes, 1, 1))
        if parsed.task.name == "caption":
            check_language(self.pretrained, str(parsed.prefix[0]).split()[1].lower())
        prompts, features = [self.prompt(parsed.prefix, parsed.given)] * len(pixels), self._encode(pixels)
        how = Decoding.parse(decoding)
        if parsed.task.measure != "box" or not parsed.is_whole:
            texts = self._write(features, prompts, how)
        elif ordered:
            texts = [ids for ids, _ in self._write_boxes(features, prompts, how if decoding else None)]
        else:
            unordered = BoxGrammar(self._pipeline, self._boxes, ordered=False)
            texts = self._write(features, prompts, how, grammar=unordered)
        answers = []
        for ids, image in zip(texts, pixels, strict=True):
            text, (height, width) = self._pipeline.text(ids), image.shape[1:]
            value = parsed.task.read(text, Form(self._boxes, width, height)) if parsed.is_whole else text
            answers.append(Answer(text, value))
        return _like(images, answers)

    def _write(
        self,
        features: Features,
        prompts: Sequence[Prompt],
        decoding: Decoding,
        *,
        images: Sequence[int] | None = None,
        grammar: BoxGrammar | None = None,
    ) -> list[Ids]:
        """Like `generate`; raises UserError if a prompt leaves no room."""
        self._check_room(prompts)
        return self.generate(features, prompts, decoding, images=images, grammar=grammar)

    def _write_boxes(
        self,
        features: Features,
        prompts: Sequence[Prompt],
        decoding: Decoding | None,
        images: Sequence[int] | None = None,
    ) -> list[tuple[Ids, float]]:
        """`write_boxes`, or boxes as `decoding` chooses them, scored by the geometric mean of token probabilities.

        Raises UserError if a prompt leaves no room.
        """
        if decoding is not None:
            texts = self._write(features, prompts, decoding, images=images, grammar=self.grammar)
            places = range(len(prompts)) if images is None else images
            totals = self.score(features, list(zip(places, prompts, texts, strict=True)))
            return [(ids, exp(total / len(ids)) if ids else 0.0) for ids, total in zip(texts, totals, strict=True)]
        self._check_room(prompts)
        return self.write_boxes(features, prompts, images=images)

    def _check_room(self, prompts: Sequence[Prompt]) -> None:
        """Raises UserError if a prompt leaves no room."""
        length = self._decoder.length
        if self.pali and (size := max(len(prompt.prefix) for prompt in prompts)) > length:
            raise UserError(f"a question of {size} tokens is longer than this model's limit of {length}; shorten it.")
        longest = max(len(prompt.given) if self.pali else len(prompt.prefix) + len(prompt.given) for prompt in prompts)
        if longest >= length:
            raise UserError(
                f"a text of {longest} tokens leaves no room for an answer: this model's limit is {length}; shorten it."
            )

    def _locate(
        self,
        features: Features,
        asked: Sequence[tuple[str, Prompt]],
        pixels: Sequence[Tensor],
        decoding: Decoding | None = None,
        images: Sequence[int] | None = None,
    ) -> list[Found]:
        """A box for each phrase, generated from its prompt."""
        prompts = [prompt for _, prompt in asked]
        found = []
        written = self._write_boxes(features, prompts, decoding, images)
        for (phrase, _), (ids, score), image in zip(asked, written, pixels, strict=True):
            height, width = image.shape[1:]
            box = self._boxes.read(self._pipeline.text(ids), width, height)
            if box is None:  # the grammar allows only boxes, but the length limit may cut one
                if decoding is not None and len(ids) == decoding.max_new_tokens:
                    raise UserError(f"max_new_tokens={len(ids)} leaves no room for a box; leave it out.")
                raise UserError(f"the phrase {phrase!r} leaves no room for a box; shorten it.")
            found.append(Found(phrase, box, score))
        return found


def without_overlaps(found: Sequence[Found]) -> list[Found]:
    """The best first, without those that overlap a better one."""
    if not found:
        return []
    boxes, scores = torch.tensor([[*f.box, f.score] for f in found], dtype=torch.float64).split([4, 1], 1)
    return [found[place] for place in nms(boxes, scores[:, 0], OVERLAP).tolist()]


def _like(images: ImageInputs, answers: list[Result]) -> Result | list[Result]:
    """One answer for a single image, a list for several."""
    return answers[0] if is_single(images) else answers
