"""What the batches' thread asks of the model."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opensiglip.apps.serve.batcher import Question
from opensiglip.apps.serve.refusal import Refused
from opensiglip.data.fields.captions import Ids
from opensiglip.errors import UserError
from opensiglip.inference.capabilities import caption_words, require
from opensiglip.inference.predictor import Predictor


class Answers:
    """A `Predictor`'s answers, by kind of question. `name`: what it is asked by, the folder's name or the hub id."""

    def __init__(self, predictor: Predictor) -> None:
        path = Path(predictor.name)
        self.name = path.resolve().name if path.exists() else predictor.name
        self.predictor = predictor = copy.copy(predictor)
        predictor.pretrained = replace(predictor.pretrained, name=self.name)  # no answer tells where the folder lies
        self.kinds: dict[str, Callable[..., Any]] = {
            "text": lambda texts: predictor.embed_texts(texts).numpy(),
            "image": lambda framed: predictor.embed_framed(framed).numpy(),
            "classify": lambda images, *labels: predictor.classify(images, labels),
            "locate": lambda images, phrase: predictor.locate(images, phrase),
            "caption": lambda images, language, beams: predictor.caption(images, language=language, num_beams=beams),
        }

    def __call__(self, question: Question, items: Sequence[Any]) -> Sequence[Any]:
        """An answer for each item. Raises UserError."""
        given = question.given if isinstance(question.given, tuple) else (question.given,)
        answers: Sequence[Any] = self.kinds[question.kind](list(items), *given)
        return answers

    def check_language(self, language: str | None) -> None:
        """Raises Refused where captions can't be had in it, UserError where none can be had."""
        require(self.predictor.pretrained, "caption", ("cap", "caption"))
        try:
            caption_words(self.predictor.pretrained, language)
        except UserError as error:
            raise Refused(400, str(error), "language") from None

    def framed(self, image: Tensor) -> Tensor:
        """An image as the model sees it; made where it is decoded, so that the batches' thread only encodes."""
        return self.predictor.framed([image])[0]

    def cut(self, vector: np.ndarray, dimensions: int | None) -> np.ndarray:
        """A unit vector [D] of so many numbers. Raises UserError where the model was not trained at that width."""
        return self.predictor.cut(torch.from_numpy(vector), dimensions).numpy()

    def tokens(self, texts: Sequence[str]) -> int:
        """The tokens of texts, for OpenAI's `usage`."""
        pipeline = self.predictor.pipeline
        ids: list[Ids] = [] if pipeline is None else [pipeline.ids(text) for text in texts]
        return sum(map(len, ids))
