"""A stand-in for a `Predictor` whose parts can be replaced: what benchmarks and pages ask of one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.data.boxes import BoxFormat
from opensiglip.data.fields.frame import Geometry
from opensiglip.data.loader import to_device
from opensiglip.data.text import TextPipeline
from opensiglip.inference.predictor import Predictor
from opensiglip.inference.text_generator import TextGenerator
from opensiglip.models.model import Model
from opensiglip.types import Features, pixels


@dataclass(frozen=True)
class Oracle:
    """`vision` and `text` in the places of the towers."""

    name: str
    frame: Geometry
    device: torch.device
    autocast: Callable[[], Any]
    vision: Callable[[Any], Features]  # pixels [B, 3, H, W] in [-1, 1], or `Patches` of them
    text: Callable[[Sequence[str]], Tensor] | None = None  # texts -> [T, D]
    to_text: Callable[[Tensor], Tensor] | None = None
    decoder: Any = None
    pipeline: TextPipeline | None = None
    boxes: BoxFormat | None = None
    pali: Any = None
    tasks: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    nested: tuple[int, ...] = ()

    @classmethod
    def of(cls, model: Model, pipeline: TextPipeline, **known: Any) -> "Oracle":
        """A model of ours, as `Pretrained.of` takes it."""
        real = Predictor(Pretrained.of(model, pipeline, **known))
        text = real.encode_texts if real.has_text else None
        towers = (real.autocast, model.vision, text, real.to_text)
        return cls(
            *(real.name, real.frame, real.device, *towers, real.decoder),
            pipeline=pipeline,
            boxes=real.boxes,
            pali=real.pali,
            tasks=real.tasks,
            languages=real.languages,
        )

    @property
    def has_text(self) -> bool:
        return self.text is not None

    # Texts are written and scored as by a `Predictor`, and embeddings cut, from the parts above.
    cut: ClassVar[Any] = Predictor.cut
    has_decoder: ClassVar[Any] = TextGenerator.has_decoder
    grammar: ClassVar[Any] = TextGenerator.grammar
    prompt: ClassVar[Any] = TextGenerator.prompt
    unchecked_caption_prompt: ClassVar[Any] = TextGenerator.unchecked_caption_prompt
    locate_prompt: ClassVar[Any] = TextGenerator.locate_prompt
    describe_prompt: ClassVar[Any] = TextGenerator.describe_prompt
    target_ids: ClassVar[Any] = TextGenerator.target_ids
    generate: ClassVar[Any] = TextGenerator.generate
    write_boxes: ClassVar[Any] = TextGenerator.write_boxes
    _agreed: ClassVar[Any] = TextGenerator._agreed
    score: ClassVar[Any] = TextGenerator.score
    score_blind: ClassVar[Any] = TextGenerator.score_blind
    _condition: ClassVar[Any] = TextGenerator._condition
    _decoder: ClassVar[Any] = TextGenerator._decoder
    _pipeline: ClassVar[Any] = TextGenerator._pipeline
    _boxes: ClassVar[Any] = TextGenerator._boxes

    @torch.no_grad()
    def encode(self, images: Sequence[Tensor]) -> Features:
        features = self.vision(pixels(to_device(self.frame.batch(images), self.device), "image"))
        pooled = None if features.pooled is None else features.pooled.float()
        return Features(pooled, features.tokens.float(), features.valid)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        assert self.text is not None
        return F.normalize(self.text(texts).float(), dim=-1)

    @torch.no_grad()
    def dense(self, images: Sequence[Tensor]) -> Tensor:
        tokens = self.encode(images).tokens
        return tokens if self.to_text is None else self.to_text(tokens).float()

    def to_grid(self, image: Tensor, patches: Tensor) -> Tensor:
        rows, columns = self.frame.grid(image, len(patches))
        return patches[: rows * columns].unflatten(0, (rows, columns))

    def with_decoder(self, decoder: Any, pipeline: TextPipeline, boxes: BoxFormat, tasks: tuple[str, ...]) -> "Oracle":
        return replace(self, decoder=decoder, pipeline=pipeline, boxes=boxes, tasks=tasks, pali=None, text=None)

    def with_vision(self, vision: Any) -> "Oracle":
        return replace(self, vision=vision)
