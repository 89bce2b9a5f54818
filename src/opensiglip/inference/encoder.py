"""`Encoder`: the towers of a trained model, which map images and texts to features and embeddings."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.data.boxes import BoxFormat
from opensiglip.data.example import Example
from opensiglip.data.fields.frame import Geometry
from opensiglip.data.loader import to_device
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.inference.device import Autocast, autocast_on, memory_errors
from opensiglip.inference.images import ImageInput, ImageInputs, load_images
from opensiglip.inference.index_folder import ABOUT, IndexFolder
from opensiglip.inference.search import Hit, Index, Searchable
from opensiglip.models.towers import Vision
from opensiglip.types import Features, pixels

IMAGES = 32  # encoded at once
TEXTS = 256  # encoded at once
PATCHES = 4096  # pooled at once, each by itself


class Encoder:
    """The towers of a `Pretrained` on one device and in one precision. Changes of its weights take effect at once."""

    def __init__(
        self, pretrained: Pretrained, *, device: torch.device | str | None = None, autocast: Autocast | None = None
    ) -> None:
        """`device`: device to move the model to; by default it is not moved. `autocast`: by default `autocast_on`."""
        self.pretrained = pretrained
        if device is not None:
            pretrained.model.to(device)
        self.device: torch.device = next(pretrained.model.parameters()).device
        self.autocast = autocast or autocast_on(self.device)

    @property
    def name(self) -> str:
        """The name under which the model was opened, for messages."""
        return self.pretrained.name

    @property
    def frame(self) -> Geometry:
        """The geometry in which images are fed to the model."""
        return self.pretrained.frame

    @property
    def pipeline(self) -> TextPipeline | None:
        """The text pipeline; None without text tower and decoder."""
        return self.pretrained.pipeline

    @property
    def boxes(self) -> BoxFormat | None:
        """The format in which the decoder writes boxes."""
        return self.pretrained.boxes

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that the decoder was trained on."""
        return self.pretrained.tasks

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages of its training, if known."""
        return self.pretrained.languages

    @property
    def has_text(self) -> bool:
        """True if it has a text tower and the tokenizer of its training."""
        return self.pretrained.model.text is not None and self.pipeline is not None

    @property
    def logit_scale(self) -> float | None:
        """t' of the logit e^t' x.y + b of an image and a text; None without a text tower."""
        return float(self.pretrained.model.logit_scale.detach()) if self.has_text else None

    @property
    def logit_bias(self) -> float | None:
        """b of the logit; None without a text tower, and after training with a softmax."""
        model = self.pretrained.model
        biased = self.has_text and model.architecture.logit_bias and model.logit_bias is not None
        return float(model.logit_bias.detach()) if biased else None

    @property
    def to_text(self) -> Callable[[Tensor], Tensor] | None:
        """Patch tokens [B, N, D] -> [B, N, E] in the texts' space; None if the model has no such map.

        CLIP's patches are projected like the class token. SigLIP's are pooled one by one, like a whole image (ours).
        """
        vision = self.pretrained.model.vision
        if not self.has_text:
            return None
        return partial(pool_patches, vision) if isinstance(vision, Vision) else getattr(vision, "to_text", None)

    @torch.no_grad()
    def encode(self, images: Sequence[Tensor]) -> Features:
        """Images [3, h, w] uint8 in the frame -> pooled [B, D] float32 or None, tokens [B, N, D] float32; on `device`.

        All images form one batch.
        """
        batch = to_device(self.frame.batch(images), self.device)
        with self.autocast():
            features: Features = self.pretrained.model.vision(pixels(batch, "image"))
        pooled = None if features.pooled is None else features.pooled.float()
        return Features(pooled, features.tokens.float(), features.valid)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings [T, E] float32 of texts, on `device`. Raises UserError without a text tower."""
        pipeline, parts = self.pipeline, []
        if not self.has_text or pipeline is None:
            raise UserError(f"{self.name} has no text tower, so texts can't be compared with images.")
        for start in range(0, len(texts), TEXTS):
            ids = torch.from_numpy(np.stack([pipeline.fixed(text) for text in texts[start : start + TEXTS]]))
            with self.autocast():
                parts.append(self.pretrained.model.text(ids.to(self.device)).pooled.float())
        return F.normalize(torch.cat(parts), dim=-1)

    @torch.no_grad()
    def dense(self, images: Sequence[Tensor]) -> Tensor:
        """Images [3, h, w] uint8 in the frame -> patches [B, N, E] float32 in the texts' space.

        Without `to_text` the result is their tokens.
        """
        tokens = self.encode(images).tokens
        if self.to_text is None:
            return tokens
        with self.autocast():
            return self.to_text(tokens).float()

    def to_grid(self, image: Tensor, patches: Tensor) -> Tensor:
        """Arrange values of patches [N, ...] of a framed image, padding included, as a grid [rows, columns, ...]."""
        rows, columns = self.frame.grid(image, len(patches))
        return patches[: rows * columns].unflatten(0, (rows, columns))

    @property
    def nested(self) -> tuple[int, ...]:
        """Widths to which its embeddings may be truncated, those of its training with `--nested`."""
        return tuple(getattr(getattr(self.pretrained.model, "architecture", None), "nested", ()))

    def cut(self, embeddings: Tensor, dim: int | None) -> Tensor:
        """Unit embeddings [B, D] -> [B, dim]: the first `dim` dimensions, normalised again; None keeps all.

        Raises UserError if the model was not trained at that width.
        """
        if dim is None or dim == embeddings.shape[-1]:
            return embeddings
        if dim not in self.nested:
            widths = ", ".join(map(str, self.nested))
            mend = f"; give one of {widths}" if widths else "; train with --nested to have others"
            raise UserError(f"embeddings of {self.name} have {embeddings.shape[-1]} numbers, not {dim}{mend}.")
        return F.normalize(embeddings[..., :dim], dim=-1)

    def embed_images(self, images: ImageInputs, *, dim: int | None = None) -> Tensor:
        """Unit embeddings [B, D] float32, on the CPU; the mean of the tokens if the model has no pooling.

        `dim`: as in `cut`.
        """
        return self.cut(self.embed_framed(self.framed(load_images(images))), dim)

    def embed_framed(self, framed: Sequence[Tensor]) -> Tensor:
        """Like `embed_images`, for images returned by `framed`."""
        return F.normalize(pooled_features(self._encode_framed(framed)), dim=-1).cpu()

    def embed_texts(self, texts: str | Sequence[str], *, dim: int | None = None) -> Tensor:
        """Unit embeddings [T, D] float32, on the CPU; `dim` as in `cut`. Raises UserError without a text tower."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise UserError("no texts to embed; give at least one.")
        with memory_errors():
            return self.cut(self.encode_texts(texts), dim).cpu()

    def features(self, images: ImageInputs) -> Tensor:
        """Patch tokens [B, h, w, D] float32, after the final norm. Raises UserError if images have different shapes."""
        framed = self.framed(load_images(images))
        return self._grids(framed, self._encode_framed(framed).tokens)

    def similarity(self, images: ImageInputs, text: str) -> Tensor:
        """Cosine [B, h, w] of each patch with a text; a patch is embedded like a whole image. Raises UserError."""
        if self.to_text is None:
            lacks = "its pooling is of all patches at once" if self.has_text else "it has no text tower"
            raise UserError(f"{self.name} can't compare patches with texts: {lacks}; give a SigLIP or a CLIP.")
        framed = self.framed(load_images(images))
        with memory_errors():
            patches = torch.cat([self.dense(framed[at : at + IMAGES]) for at in range(0, len(framed), IMAGES)])
            return self._grids(framed, F.normalize(patches, dim=-1) @ self.encode_texts([text])[0])

    def index(self, folder: str | Path) -> Searchable:
        """The images of a folder, embedded once for many searches, or an index on disk. Raises UserError."""
        if (Path(folder) / ABOUT).is_file():
            return IndexFolder.open(folder)
        return Index.build(folder, self.embed_images, IMAGES)

    def search(
        self,
        where: str | Path | Searchable,
        text: str | None = None,
        *,
        image: ImageInput | None = None,
        count: int = 8,
    ) -> list[Hit]:
        """Find the images of a folder, or of its `index`, nearest to a text or an image, nearest first.

        Exactly one of text and image must be given. Raises UserError, also for a text without a text tower.
        """
        if (text is None) == (image is None):
            raise UserError("search by a text or by an image: give one of the two.")
        query = self.embed_images([image])[0] if text is None else self.embed_texts(text)[0]  # type: ignore[list-item]
        index = self.index(where) if isinstance(where, str | Path) else where
        return index.nearest(self.cut(query, index.dim) if index.dim in self.nested else query, count)

    def with_vision(self, vision: Any) -> Self:
        """The same model with another image tower."""
        return self._with({"vision": vision})

    def with_parts(self, **parts: Any) -> Self:
        """The same model with some of `PARTS` replaced."""
        return self._with(parts)

    def _with(self, parts: dict[str, Any], **facts: Any) -> Self:
        """A copy with other parts of the model and other facts about it."""
        model = self.pretrained.model
        kept = {name: getattr(model, name, None) for name in PARTS}  # no text tower: no logit_scale
        changed = replace(self.pretrained, model=SimpleNamespace(**kept | parts), **facts)
        copy = object.__new__(type(self))
        copy.pretrained, copy.device, copy.autocast = changed, self.device, self.autocast
        return copy

    def _encode(self, images: Sequence[Tensor]) -> Features:
        """Images [3, h, w] uint8 of any size -> features, in batches."""
        return self._encode_framed(self.framed(images))

    def framed(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Images [3, h, w] uint8 of any size in the model's frame. Raises UserError if there is none."""
        if not images:
            raise UserError("no image was given.")
        with memory_errors():
            return [self.frame.apply(Example(image, ()), None)[0] for image in images]

    def _encode_framed(self, framed: Sequence[Tensor]) -> Features:
        with memory_errors():
            parts = [self.encode(framed[at : at + IMAGES]) for at in range(0, len(framed), IMAGES)]
        return Features(
            None if parts[0].pooled is None else torch.cat([part.pooled for part in parts if part.pooled is not None]),
            torch.cat([part.tokens for part in parts]),
            None if parts[0].valid is None else torch.cat([part.valid for part in parts if part.valid is not None]),
        )

    def _grids(self, framed: Sequence[Tensor], patches: Tensor) -> Tensor:
        """[B, N, ...] -> [B, h, w, ...], on the CPU. Raises UserError if NaFlex gives the images different grids."""
        grids = [self.to_grid(image, values).cpu() for image, values in zip(framed, patches, strict=True)]
        if len({grid.shape for grid in grids}) > 1:
            raise UserError("these images have different shapes, which a NaFlex model keeps; give them one at a time.")
        return torch.stack(grids)


PARTS = ("vision", "text", "decoder", "pali", "logit_scale", "logit_bias", "architecture", "vocabulary")  # of a model


def pooled_features(features: Features) -> Tensor:
    """[B, D]: the pooled features, or the mean of the tokens if the model has no pooling."""
    if features.pooled is not None:
        return features.pooled
    if features.valid is None:
        return features.tokens.mean(1)
    valid = features.valid[..., None]
    return (features.tokens * valid).sum(1) / valid.sum(1)


def pool_patches(vision: Vision, tokens: Tensor) -> Tensor:
    """Tokens [B, N, D] -> [B, N, D]: each by `Vision.alone`, some at a time."""
    return torch.cat([vision.alone(part) for part in tokens.flatten(0, 1).split(PATCHES)]).unflatten(
        0, tokens.shape[:2]
    )
