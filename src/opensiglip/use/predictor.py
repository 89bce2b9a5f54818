"""`opensiglip.load`: a trained model, to be asked in Python. Boxes are x1, y1, x2, y2 in pixels of the image given."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from math import exp
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import nms

from opensiglip.data.boxes import BoxFormat
from opensiglip.data.captions import PREFIXES, Ids, Target, caption_prefix, grounded_prefix, referring_prefix
from opensiglip.data.example import Box, BrokenExample, Example
from opensiglip.data.rows import fit_box, parse_box
from opensiglip.data.text import TextPipeline
from opensiglip.decoding import BoxGrammar
from opensiglip.errors import UserError
from opensiglip.evaluate.likelihood import likelihoods, target
from opensiglip.evaluate.subject import Subject
from opensiglip.models.coca import Multimodal
from opensiglip.models.decoder import Decoder
from opensiglip.types import Features
from opensiglip.use.images import Pictures, is_one, read_all
from opensiglip.use.writer import Writer

BATCH = 32  # images encoded at once
OVERLAP = 0.5  # proposals that overlap more are of one thing
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Found:
    """A phrase and its box; `score` in 0..1 is the geometric mean of the probabilities of the tokens that say it."""

    phrase: str
    box: Box
    score: float


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


@contextmanager
def memory_in_words() -> Iterator[None]:
    """Out of memory, said as what to do."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(
            "the GPU ran out of memory; give fewer images at once, or hide it (CUDA_VISIBLE_DEVICES=) to use the CPU."
        ) from None


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
        return F.normalize(features.tokens.mean(1) if features.pooled is None else features.pooled, dim=-1).cpu()

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
            decoder, pipeline = self._decoder("classify", "cap")
            texts = [target(pipeline, caption_prefix(pipeline, subject.tasks), label) for label in labels]
            asked = [(image, text) for image in range(len(features.tokens)) for text in texts]
            with memory_in_words(), subject.autocast():
                sums = likelihoods(decoder, features.tokens, asked, pipeline, features.valid)
            likely = torch.tensor(sums).view(-1, len(labels)).softmax(-1)
        answers = [
            dict(sorted(zip(labels, row, strict=True), key=lambda pair: -pair[1])) for row in likely.float().tolist()
        ]
        return self._as_asked(images, answers)

    def caption(self, images: Pictures, *, language: str | None = None, **how: Any) -> Any:
        """What stands on the image, in the words of its training.

        `language` is for certainty: a model of one language writes that, and no model here is told which to write.
        Raises UserError without a decoder, or where `language` can't be had.
        """
        _, pipeline = self._decoder("caption", "cap")
        self._check_language(language)
        prefix = caption_prefix(pipeline, self.subject.tasks)
        features = self._see(read_all(images))
        texts = self._write(features, [prefix] * len(features.tokens), **how)
        return self._as_asked(images, [pipeline.text(ids) for ids in texts])

    def locate(self, images: Pictures, phrase: str, **how: Any) -> Any:
        """Where the phrase is: `Found`, always with a box, so look at its score. Raises UserError."""
        _, pipeline = self._decoder("locate", "aref")
        pixels = read_all(images)
        asked = [(phrase, referring_prefix(pipeline, phrase))] * len(pixels)
        return self._as_asked(images, self._locate(self._see(pixels), asked, pixels, **how))

    def describe(self, image: Pictures, box: Sequence[float], **how: Any) -> Any:
        """What stands in the box x1, y1, x2, y2 in pixels of the image. Raises UserError."""
        _, pipeline = self._decoder("describe a box", "gcap")
        pixels = read_all(image)
        written = []
        for picture in pixels:
            height, width = picture.shape[1:]
            try:
                fitted = fit_box(parse_box([float(edge) for edge in box]), width, height)
            except (BrokenExample, TypeError, ValueError) as reason:
                raise UserError(
                    f"{list(box)} is no box of an image of {width} x {height} pixels ({reason}); give x1, y1, x2, y2."
                ) from None
            written.append(grounded_prefix(pipeline, self._boxes.write(fitted, width, height)))
        texts = self._write(self._see(pixels), written, **how)
        return self._as_asked(image, [pipeline.text(ids) for ids in texts])

    def propose(self, images: Pictures, count: int = 5) -> Any:
        """Up to `count` phrases with boxes, best first: phrases by beam behind "ARef:", then the box of each.

        Of proposals that overlap the better one stays. LocCa proposes from that prompt; the two steps are ours.
        """
        decoder, pipeline = self._decoder("propose", "aref")
        pixels = read_all(images)
        features, beams = self._see(pixels), 2 * count
        start, colon = pipeline.ids(PREFIXES["aref"]), pipeline.ids(" :")
        phrases = self._write(
            features,
            [start] * len(pixels),
            num_beams=beams,
            num_return_sequences=beams,
            eos_token_id=colon[-1],
            suppress_tokens=[pipeline.policy.eos_id],
            max_length=self._room_for_phrases(),
        )
        answers = []
        for number, picture in enumerate(pixels):
            mine = phrases[number * beams : (number + 1) * beams]
            texts = {text: ids for ids in reversed(mine) if (text := pipeline.text(ids))}
            asked = [(text, (*start, *ids, *colon)) for text, ids in texts.items()]
            found = self._locate(rows(features, [number] * len(asked)), asked, [picture] * len(asked))
            said = [(0, Target(start, (*ids, *colon))) for ids in texts.values()]
            with memory_in_words(), self.subject.autocast():
                seen = rows(features, [number])
                sums = likelihoods(decoder, seen.tokens, said, pipeline, seen.valid)
            both = [
                replace(box, score=box.score * exp(total / len(text.target)))
                for box, total, (_, text) in zip(found, sums, said, strict=True)
            ]
            answers.append(thinned(both)[:count])
        return self._as_asked(images, answers)

    def answer(self, images: Pictures, task_text: str, **how: Any) -> Any:
        """What the decoder writes behind a task's text as it was trained: "Cap:", "ARef: a fox :", "GCap: 1 2 3 4 :".

        Numbers are those of the model's own box format. Raises UserError on a task that it was not trained on.
        """
        _, pipeline = self._decoder("answer")
        prefix, grammar = self._task(task_text, pipeline)
        features = self._see(read_all(images))
        texts = self._write(features, [prefix] * len(features.tokens), grammar=grammar, **how)
        return self._as_asked(images, [pipeline.text(ids) for ids in texts])

    def features(self, images: Pictures) -> Tensor:
        """Patch tokens [B, h, w, D] float32, after the final norm."""
        return self._grid(self._see(read_all(images)).tokens).cpu()

    @memory_in_words()
    def similarity(self, images: Pictures, text: str) -> Tensor:
        """Cosine [B, h, w] of each patch with the text, the patch read as if it were the image. Raises UserError."""
        if self.subject.to_text is None:
            raise UserError(f"{self.subject.name} has no way from patches to texts; give a model with a text tower.")
        dense = F.normalize(self.subject.dense(self._framed(read_all(images))), dim=-1)
        return self._grid(dense @ self.subject.read([text])[0]).cpu()

    @memory_in_words()
    def _see(self, pixels: Sequence[Tensor]) -> Features:
        if not pixels:
            raise UserError("no image was given.")
        parts = [self.subject.see(self._framed(pixels[at : at + BATCH])) for at in range(0, len(pixels), BATCH)]

        def joined(fields: Sequence[Tensor | None]) -> Tensor | None:
            return torch.cat([field for field in fields if field is not None]) if fields[0] is not None else None

        return Features(
            joined([part.pooled for part in parts]),
            torch.cat([part.tokens for part in parts]),
            joined([part.valid for part in parts]),
        )

    def _framed(self, pixels: Sequence[Tensor]) -> Tensor:
        return torch.stack([self.subject.frame.apply(Example(image, ()), None)[0] for image in pixels])

    @memory_in_words()
    def _write(self, features: Features, prefixes: Sequence[Ids], **how: Any) -> list[Ids]:
        with self.subject.autocast():
            return self._writer.write(features.tokens, prefixes, valid=features.valid, **how)

    def _locate(
        self, features: Features, asked: Sequence[tuple[str, Ids]], pixels: Sequence[Tensor], **how: Any
    ) -> list[Found]:
        """A box for each phrase, which goes on from the ids beside it."""
        decoder, pipeline = self._decoder("locate")
        phrases, prefixes = [phrase for phrase, _ in asked], [prefix for _, prefix in asked]
        texts = self._write(features, prefixes, grammar=self._grammar, **how)
        whole = [(*ids, pipeline.policy.eos_id) for ids in texts]
        said = [(row, Target(prefix, ids)) for row, (prefix, ids) in enumerate(zip(prefixes, whole, strict=True))]
        with memory_in_words(), self.subject.autocast():
            sums = likelihoods(decoder, features.tokens, said, pipeline, features.valid)
        found = []
        for phrase, ids, picture, total in zip(phrases, texts, pixels, sums, strict=True):
            height, width = picture.shape[1:]
            box = self._boxes.read(pipeline.text(ids), width, height)
            if box is None:  # the grammar admits nothing else, unless the room ends before the box does
                raise UserError(f"the phrase {phrase!r} leaves no room for a box; shorten it.")
            found.append(Found(phrase, box, exp(total / (len(ids) + 1))))
        return found

    def _task(self, text: str, pipeline: TextPipeline) -> tuple[Ids, BoxGrammar | None]:
        """The prefix's ids, part by part as in training, and the grammar where a box is to follow."""
        words = " ".join(text.split())
        task = next(
            (task for task, prefix in PREFIXES.items() if words.lower().startswith(prefix.strip().lower())), None
        )
        if task is None or task not in self.subject.tasks:
            known = ", ".join(f'"{PREFIXES[task].strip()}"' for task in self.subject.tasks)
            raise UserError(f"{text!r} begins with no task of this model; it was trained on {known or 'none'}.")
        rest = words[len(PREFIXES[task].strip()) :].strip()
        given = rest.removesuffix(":").strip()
        if task == "aref" and rest.endswith(":"):
            return referring_prefix(pipeline, given), self._grammar
        if task == "gcap" and rest.endswith(":"):
            if self._boxes.read(given, 1, 1) is None:
                raise UserError(f"{given!r} is no box as this model writes one: {self._boxes}.")
            return grounded_prefix(pipeline, given), None
        before = caption_prefix(pipeline, self.subject.tasks) if task == "cap" else pipeline.ids(PREFIXES[task])
        return before + (pipeline.ids(f" {rest}") if rest else ()), None

    def _check_language(self, language: str | None) -> None:
        known = self.subject.languages
        if language is None or known == (language,):
            return
        if language in known:
            raise UserError(
                f"this model knows {', '.join(known)} and is not told which to write; leave the language out."
            )
        raise UserError(
            f"this model never saw {language!r}; its captions are in {', '.join(known) or 'no named language'}."
        )

    def _decoder(self, verb: str, task: str | None = None) -> tuple[Decoder | Multimodal, TextPipeline]:
        """The decoder and its pipeline. Raises UserError where there is none, or it was not trained on the task."""
        subject = self.subject
        if subject.decoder is None or subject.pipeline is None:
            raise UserError(
                f"{subject.name} has no decoder, so it can't {verb}; give a run of cap, cappa, locca or siglip2."
            )
        if task is not None and task not in subject.tasks:
            raise UserError(
                f"{subject.name} was trained on {', '.join(subject.tasks)} and can't {verb}; "
                "give a run of locca or siglip2."
            )
        return subject.decoder, subject.pipeline

    @cached_property
    def _writer(self) -> Writer:
        decoder, pipeline = self._decoder("write")
        return Writer(decoder, pipeline.policy.pad_id, pipeline.policy.eos_id)

    @cached_property
    def _grammar(self) -> BoxGrammar:
        return BoxGrammar(self._decoder("locate")[1], self._boxes)

    @property
    def _boxes(self) -> BoxFormat:
        return self.subject.boxes or BoxFormat()

    def _room_for_phrases(self) -> int:
        """How long a row may get before the box must begin: ids with the start token and the colon."""
        decoder, _ = self._decoder("propose")
        longest = max(len(ids) for some in self._grammar.numbers for ids in some)
        return decoder.length + 1 - 4 * longest - 1

    def _grid(self, patches: Tensor) -> Tensor:
        """[B, N, ...] -> [B, h, w, ...]; the frame is a square."""
        side = round(patches.shape[1] ** 0.5)
        return patches.unflatten(1, (side, side))

    def _as_asked(self, images: Pictures, answers: list[Answer]) -> Answer | list[Answer]:
        return answers[0] if is_one(images) else answers


def rows(features: Features, places: Sequence[int]) -> Features:
    """Those rows of the features, one of them several times if asked."""
    return Features(None, features.tokens[places], None if features.valid is None else features.valid[places])


def thinned(found: Sequence[Found]) -> list[Found]:
    """The best first, without those that overlap a better one."""
    if not found:
        return []
    boxes, scores = torch.tensor([[*f.box, f.score] for f in found], dtype=torch.float64).split([4, 1], 1)
    kept = nms(boxes, scores[:, 0], OVERLAP)
    return [found[place] for place in kept.tolist()]
