"""Subject: what is judged, whatever it came from. Tasks know nothing else of a model."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.data.boxes import BoxFormat
from opensiglip.data.fields.frame import Geometry
from opensiglip.data.loader import to_device
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.models.model import Model
from opensiglip.models.pali import Pali
from opensiglip.models.towers import Vision
from opensiglip.types import Features, pixels

TEXTS = 256  # encoded at once
PATCHES = 4096  # pooled at once, each alone

Autocast = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Subject:
    """A model behind the three questions that tasks ask: see an image, read texts, see densely in the texts' space."""

    name: str
    frame: Geometry
    device: torch.device
    autocast: Autocast
    vision: Callable[[Any], Features]  # pixels [B, 3, H, W] in [-1, 1], or `Patches` of them
    text: Callable[[Sequence[str]], Tensor] | None = None  # texts -> [T, D]
    to_text: Callable[[Tensor], Tensor] | None = None  # tokens [B, N, D] -> the same patches in the texts' space
    decoder: Any = None
    pipeline: TextPipeline | None = None  # of the decoder and of a text tower of ours
    boxes: BoxFormat | None = None
    pali: Pali | None = None  # an encoder-decoder, in a decoder's place
    tasks: tuple[str, ...] = ()  # what the decoder was trained to write: "cap", "aref", "gcap"
    languages: tuple[str, ...] = ()  # of its training, where known
    scale: float | None = None  # e^t' of a score t x.y + b
    bias: float | None = None

    @classmethod
    def load(cls, spec: str | Path) -> "Subject":
        """Whatever `Pretrained.open` reads, on the best device. Raises UserError naming what can't be read."""
        pretrained = Pretrained.open(spec)
        pretrained.model.to(best_device())
        return cls.of_pretrained(pretrained)

    @classmethod
    def of(
        cls, model: Model, pipeline: TextPipeline | None, *, autocast: Autocast | None = None, **known: Any
    ) -> "Subject":
        """A model of ours, as it stands; what is judged follows its weights. `known` as in `Pretrained.of`."""
        return cls.of_pretrained(Pretrained.of(model, pipeline, **known), autocast)

    @classmethod
    def of_pretrained(cls, pretrained: Pretrained, autocast: Autocast | None = None) -> "Subject":
        """A model where it stands."""
        model, pipeline = pretrained.model, pretrained.pipeline
        device = next(model.parameters()).device
        has_text = model.text is not None and pipeline is not None
        alone = partial(each_alone, model.vision) if isinstance(model.vision, Vision) else None
        return cls(
            pretrained.name,
            pretrained.frame,
            device,
            autocast or autocast_on(device),
            model.vision,
            partial(_read, model, pipeline) if has_text else None,
            (getattr(model.vision, "to_text", None) or alone) if has_text else None,
            model.decoder,
            pipeline,
            pretrained.boxes,
            model.pali,
            pretrained.tasks,
            pretrained.languages,
            float(model.logit_scale.detach().exp()) if has_text else None,
            float(model.logit_bias.detach()) if has_text and model.logit_bias is not None else None,
        )

    @property
    def has_text(self) -> bool:
        """Has it a text tower, to compare images and texts?"""
        return self.text is not None

    @property
    def has_decoder(self) -> bool:
        """Has it a decoder, to write and to weigh texts?"""
        return self.decoder is not None

    @torch.no_grad()
    def see(self, images: Sequence[Tensor]) -> Features:
        """Images [3, h, w] uint8 in the frame -> pooled [B, D] float32 or None, tokens [B, N, D] float32."""
        batch = to_device(self.frame.batch(images), self.device)
        with self.autocast():
            features = self.vision(pixels(batch, "image"))
        pooled = None if features.pooled is None else features.pooled.float()
        return Features(pooled, features.tokens.float(), features.valid)

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings [T, D] float32 of texts. Raises UserError where there is no text tower."""
        if self.text is None:
            raise UserError(f"{self.name} has no text tower, so texts can't be compared with images.")
        parts = []
        for at in range(0, len(texts), TEXTS):
            with self.autocast():
                parts.append(self.text(texts[at : at + TEXTS]).float())
        return F.normalize(torch.cat(parts), dim=-1)

    @torch.no_grad()
    def dense(self, images: Sequence[Tensor]) -> Tensor:
        """Framed images [3, h, w] uint8 -> patches [B, N, D] float32 in the texts' space where there is a way to it.

        Elsewhere the tokens themselves.
        """
        tokens = self.see(images).tokens
        if self.to_text is None:
            return tokens
        with self.autocast():
            return self.to_text(tokens).float()

    def map_of(self, image: Tensor, patches: Tensor) -> Tensor:
        """What is known of each token of a framed image [N, ...], where its patch stands [rows, columns, ...]."""
        rows, columns = self.frame.grid(image, len(patches))
        return patches[: rows * columns].unflatten(0, (rows, columns))


def best_device() -> torch.device:
    """The accelerator, where there is one."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def autocast_on(device: torch.device) -> Autocast:
    """bfloat16 products where a GPU multiplies them; elsewhere none, so that figures are the same on every CPU."""
    pays = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return partial(torch.autocast, device.type, torch.bfloat16, enabled=pays)


def _read(model: Model, pipeline: TextPipeline, texts: Sequence[str]) -> Tensor:
    assert model.text is not None
    ids = torch.from_numpy(np.stack([pipeline.fixed(text) for text in texts]))
    pooled = model.text(ids.to(next(model.parameters()).device)).pooled
    assert pooled is not None
    return pooled


def each_alone(vision: Vision, tokens: Tensor) -> Tensor:
    """Tokens [B, N, D] -> [B, N, D]: what the MAP head says of a patch when it is all there is to attend to (ours)."""
    alone = tokens.flatten(0, 1)[:, None]
    return torch.cat([vision.pool(some) for some in alone.split(PATCHES)]).unflatten(0, tokens.shape[:2])
