"""`opensiglip.load`: a trained model, to be asked in Python. Boxes are x1, y1, x2, y2 in pixels of the image given."""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from math import exp
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import nms

from opensiglip.data.example import BrokenExample, Example
from opensiglip.data.sources.box_layout import BoxLayout
from opensiglip.data.tasks import Form, Task, parse_question
from opensiglip.errors import UserError
from opensiglip.evaluation.benchmarks.features import pooled
from opensiglip.inference.abilities import caption_words, check_language, require, trained_tasks
from opensiglip.inference.answers import Answer, Found
from opensiglip.inference.box_grammar import BoxGrammar
from opensiglip.inference.images import Pictures, is_one, read_all
from opensiglip.inference.likelihood import target
from opensiglip.inference.speaker import Prompt, Speaker, memory_in_words, rows
from opensiglip.inference.subject import Subject
from opensiglip.types import Features

BATCH = 32  # images encoded at once
OVERLAP = 0.5  # proposals that overlap more are of one thing
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
Said = TypeVar("Said")


def load(spec: str | Path) -> "Predictor":
    """A run, its model/ folder, a hub id, or another library's model as `opensiglip eval` names it.

    It runs on the GPU where there is one, in bfloat16 where that pays. Raises UserError naming what can't be read.
    """
    name = str(spec)
    if HUB_ID.fullmatch(name) and not Path(name).expanduser().exists():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            name = snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"])
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{spec} is no folder here, and can't be had from the hub ({reason}).") from error
    return Predictor(Subject.load(name))


class Predictor:
    """A model to be asked. One image gives one answer, a list of them a list of answers.

    Images are paths, PIL images, uint8 arrays [H, W, 3] or tensors [3, H, W]. Keywords that a method does not know are
    those of transformers' `generate`: `num_beams=4`, or `do_sample=True, top_p=0.9`.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    def embed_images(self, images: Pictures) -> Tensor:
        """Unit embeddings [B, D] float32; of a model that pools nothing, the mean of its tokens."""
        features = self._see(read_all(images))
        return F.normalize(pooled(features), dim=-1).cpu()

    @memory_in_words()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings [T, D] float32. Raises UserError without a text tower."""
        return self.subject.read([texts] if isinstance(texts, str) else list(texts)).cpu()

    def classify(self, images: Pictures, labels: Sequence[str]) -> Any:
        """{label: probability}, likeliest first.

        With SigLIP's text tower each label's own probability, which need not sum to 1; with CLIP's, or a decoder alone,
        shares of 1: a decoder weighs each label as a caption (CapPa's way; recipes.md 2.8). Raises UserError.
        """
        labels = list(dict.fromkeys(labels))
        if not labels:
            raise UserError("no labels to classify by; give at least one.")
        features, subject = self._see(read_all(images)), self.subject
        if subject.has_text and features.pooled is not None and subject.scale is not None:
            logits = subject.scale * F.normalize(features.pooled, dim=-1) @ subject.read(labels).T
            likely = logits.softmax(-1) if subject.bias is None else (logits + subject.bias).sigmoid()
        else:
            speaker = self._speaker("classify", "cap", "caption")
            prompt = speaker.prompt(caption_words(subject))
            texts = [target(speaker.pipeline, prompt.prefix, label).target for label in labels]
            asked = [(image, prompt, text) for image in range(len(features.tokens)) for text in texts]
            likely = torch.tensor(speaker.weigh(features, asked)).view(-1, len(labels)).softmax(-1)
        answers = [
            dict(sorted(zip(labels, row, strict=True), key=lambda pair: -pair[1])) for row in likely.float().tolist()
        ]
        return self._as_asked(images, answers)

    def caption(self, images: Pictures, *, language: str | None = None, **how: Any) -> Any:
        """What stands on the image, in the words of its training.

        `language`, such as "de", is chosen where training marked it (the task "caption LANGUAGE"); elsewhere the model
        writes what it saw, and the one language that it knows passes. Raises UserError on a language that can't be had,
        and without a decoder.
        """
        speaker = self._speaker("caption", "cap", "caption")
        prompt = speaker.prompt(caption_words(self.subject, language))
        features = self._see(read_all(images))
        texts = speaker.write(features, [prompt] * len(features.tokens), **how)
        return self._as_asked(images, [speaker.pipeline.text(ids) for ids in texts])

    def locate(self, images: Pictures, phrase: str, **how: Any) -> Any:
        """Where the phrase is: `Found`, always with a box, so look at its score. Raises UserError."""
        speaker, pixels = self._speaker("locate", "aref"), read_all(images)
        asked = [(phrase, speaker.prompt(("ARef:",), (phrase, ":")))] * len(pixels)
        return self._as_asked(images, self._locate(self._see(pixels), asked, pixels, **how))

    def describe(self, image: Pictures, box: Sequence[float], **how: Any) -> Any:
        """What stands in the box x1, y1, x2, y2 in pixels of the image. Raises UserError."""
        speaker, pixels = self._speaker("describe a box", "gcap"), read_all(image)
        prompts = []
        for picture in pixels:
            height, width = picture.shape[1:]
            try:
                fitted = BoxLayout().fit(BoxLayout().read([float(edge) for edge in box]), width, height)
            except (BrokenExample, TypeError, ValueError) as reason:
                raise UserError(
                    f"{list(box)} is no box of an image of {width} x {height} pixels ({reason}); give x1, y1, x2, y2."
                ) from None
            prompts.append(speaker.prompt(("GCap:",), (fitted, ":"), width, height))
        texts = speaker.write(self._see(pixels), prompts, **how)
        return self._as_asked(image, [speaker.pipeline.text(ids) for ids in texts])

    def propose(self, images: Pictures, count: int = 5) -> Any:
        """Up to `count` phrases with boxes, best first: phrases by beam behind "ARef:", then the box of each.

        Of proposals that overlap the better one stays. LocCa proposes from that prompt; the two steps are ours.
        """
        speaker, pixels = self._speaker("propose", "aref"), read_all(images)
        features, beams = self._see(pixels), 2 * count
        start, colon = speaker.prompt(("ARef:",)), speaker.pipeline.ids(" :")
        longest = max(len(ids) for some in speaker.grammar.numbers for ids in some)
        phrases = speaker.write(
            features,
            [start] * len(pixels),
            num_beams=beams,
            num_return_sequences=beams,
            eos_token_id=colon[-1],
            suppress_tokens=[speaker.pipeline.policy.eos_id],
            max_length=speaker.decoder.length + 1 - len(colon) - 4 * longest,  # colon and box still have room
        )
        answers = []
        for number, picture in enumerate(pixels):
            mine = phrases[number * beams : (number + 1) * beams]
            # Of a colon of several ids only the last ended the phrase.
            ended = [ids[: len(ids) + 1 - len(colon)] if ids[1 - len(colon) :] == colon[:-1] else ids for ids in mine]
            texts = {text: ids for ids in reversed(ended) if (text := speaker.pipeline.text(ids))}
            asked = [(text, Prompt(start.prefix, (*ids, *colon))) for text, ids in texts.items()]
            found = self._locate(rows(features, [number] * len(asked)), asked, [picture] * len(asked))
            said = [(0, start, (*ids, *colon)) for ids in texts.values()]
            sums = speaker.weigh(rows(features, [number]), said)
            both = [
                replace(box, score=box.score * exp(total / len(ids)))
                for box, total, (_, _, ids) in zip(found, sums, said, strict=True)
            ]
            answers.append(thinned(both)[:count])
        return self._as_asked(images, answers)

    def answer(
        self, images: Pictures, task_text: str, *, task: Task | None = None, ordered: bool = True, **how: Any
    ) -> Any:
        """`Answer`: what the decoder writes to a question in the words of a task that it was trained on.

        Such as "answer en what is left of the fox?", "detect fox ; apple", "ARef: a fox :", "GCap: 1 2 3 4 :" (numbers
        of the model's own box format). `task` is a `Task` of one's own, whose `read` then says what the words mean;
        without `ordered` a box's corners may come in any order. Raises UserError on a question of no trained task.
        """
        speaker, pixels = self._speaker("answer"), read_all(images)
        tasks = trained_tasks(self.subject) if task is None else [task]
        question = parse_question(task_text, tasks, Form(speaker.boxes, 1, 1))
        if question.task.name == "caption":
            check_language(self.subject, str(question.prefix[0]).split()[1].lower())
        prompt, grammar = speaker.prompt(question.prefix, question.given), None
        if question.task.measure == "box" and question.is_whole:
            grammar = speaker.grammar if ordered else BoxGrammar(speaker.pipeline, speaker.boxes, ordered=False)
        written = speaker.write(self._see(pixels), [prompt] * len(pixels), grammar=grammar, **how)
        answers = []
        for ids, picture in zip(written, pixels, strict=True):
            text, (height, width) = speaker.pipeline.text(ids), picture.shape[1:]
            value = question.task.read(text, Form(speaker.boxes, width, height)) if question.is_whole else text
            answers.append(Answer(text, value))
        return self._as_asked(images, answers)

    def features(self, images: Pictures) -> Tensor:
        """Patch tokens [B, h, w, D] float32, after the final norm. Raises UserError where images have unlike shapes."""
        framed = self._framed(read_all(images))
        return self._maps(framed, self._see_framed(framed).tokens)

    @memory_in_words()
    def similarity(self, images: Pictures, text: str) -> Tensor:
        """Cosine [B, h, w] of each patch with the text, the patch read as if it were the image. Raises UserError."""
        if self.subject.to_text is None:
            raise UserError(f"{self.subject.name} has no way from patches to texts; give a model with a text tower.")
        framed = self._framed(read_all(images))
        dense = F.normalize(self.subject.dense(framed), dim=-1)
        return self._maps(framed, dense @ self.subject.read([text])[0])

    def _see(self, pixels: Sequence[Tensor]) -> Features:
        return self._see_framed(self._framed(pixels))

    @memory_in_words()
    def _see_framed(self, framed: Sequence[Tensor]) -> Features:
        parts = [self.subject.see(framed[at : at + BATCH]) for at in range(0, len(framed), BATCH)]

        def joined(fields: Sequence[Tensor | None]) -> Tensor | None:
            return torch.cat([field for field in fields if field is not None]) if fields[0] is not None else None

        return Features(
            joined([part.pooled for part in parts]),
            torch.cat([part.tokens for part in parts]),
            joined([part.valid for part in parts]),
        )

    @memory_in_words()
    def _framed(self, pixels: Sequence[Tensor]) -> list[Tensor]:
        if not pixels:
            raise UserError("no image was given.")
        return [self.subject.frame.apply(Example(image, ()), None)[0] for image in pixels]

    def _locate(
        self, features: Features, asked: Sequence[tuple[str, Prompt]], pixels: Sequence[Tensor], **how: Any
    ) -> list[Found]:
        """A box for each phrase, which goes on from the prompt beside it."""
        speaker = self._speaker("locate")
        texts = speaker.write(features, [prompt for _, prompt in asked], grammar=speaker.grammar, **how)
        boxes = []
        for (phrase, _), ids, picture in zip(asked, texts, pixels, strict=True):
            height, width = picture.shape[1:]
            box = speaker.boxes.read(speaker.pipeline.text(ids), width, height)
            if box is None:  # the grammar admits nothing else, unless the room ends before the box does
                raise UserError(f"the phrase {phrase!r} leaves no room for a box; shorten it.")
            boxes.append(box)
        said = [(row, prompt, ids) for row, ((_, prompt), ids) in enumerate(zip(asked, texts, strict=True))]
        likely = [exp(total / len(ids)) for total, ids in zip(speaker.weigh(features, said), texts, strict=True)]
        return [Found(phrase, box, score) for (phrase, _), box, score in zip(asked, boxes, likely, strict=True)]

    def _speaker(self, verb: str, *tasks: str) -> Speaker:
        """What writes. Raises UserError where nothing does, or it was trained on none of the tasks."""
        require(self.subject, verb, tasks)
        return self._writes

    @cached_property
    def _writes(self) -> Speaker:
        return Speaker(self.subject)

    def _maps(self, framed: Sequence[Tensor], patches: Tensor) -> Tensor:
        """[B, N, ...] -> [B, h, w, ...]. Raises UserError where NaFlex gives the images unlike grids."""
        maps = [self.subject.map_of(image, tokens).cpu() for image, tokens in zip(framed, patches, strict=True)]
        if len({some.shape for some in maps}) > 1:
            raise UserError("these images have unlike shapes, which a NaFlex model keeps; give them one at a time.")
        return torch.stack(maps)

    def _as_asked(self, images: Pictures, answers: list[Said]) -> Said | list[Said]:
        return answers[0] if is_one(images) else answers


def thinned(found: Sequence[Found]) -> list[Found]:
    """The best first, without those that overlap a better one."""
    if not found:
        return []
    boxes, scores = torch.tensor([[*f.box, f.score] for f in found], dtype=torch.float64).split([4, 1], 1)
    kept = nms(boxes, scores[:, 0], OVERLAP)
    return [found[place] for place in kept.tolist()]
