"""What the batches' thread asks of the model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from opensiglip.apps.serve.batcher import Question
from opensiglip.data.fields.captions import Ids
from opensiglip.inference.predictor import Predictor


class Answers:
    """A `Predictor`'s answers, by kind of question."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
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

    @property
    def name(self) -> str:
        """What the model is asked by: the folder's name, or the hub id."""
        path = Path(self.predictor.name)
        return path.resolve().name if path.exists() else self.predictor.name

    def framed(self, image: Tensor) -> Tensor:
        """An image as the model sees it; made where it is decoded, so that the batches' thread only encodes."""
        return self.predictor.framed([image])[0]

    def tokens(self, texts: Sequence[str]) -> int:
        """The tokens of texts, for OpenAI's `usage`."""
        pipeline = self.predictor.pipeline
        ids: list[Ids] = [] if pipeline is None else [pipeline.ids(text) for text in texts]
        return sum(map(len, ids))
