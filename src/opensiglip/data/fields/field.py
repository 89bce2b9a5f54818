"""From an example to the fields of a batch. All randomness of training is drawn here, from one generator per visit."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as transform

from opensiglip.data.example import Caption, Example, Region
from opensiglip.data.text import TextPipeline
from opensiglip.types import Batch

Window = tuple[int, int, int, int]  # top, left, height, width: a part of an image

SMALLEST = 0.5  # of a region's area must survive a crop; less, and its phrase no longer fits what is left


@dataclass(frozen=True)
class Visit:
    """One example as one training step sees it: image and boxes after the geometric transforms, one caption drawn."""

    example: Example
    image: Tensor  # [3, h, w] uint8
    regions: tuple[Region, ...]  # boxes in pixels of `image`
    caption: Caption | None
    window: Window | None = None  # the part of the example's image that is seen; None: all of it

    def point(self, at: tuple[float, float]) -> tuple[float, float]:
        """A point x, y of the example's image in pixels of `image`, brought to its edge where it lies outside."""
        whole = self.example.image.shape[-2:]
        top, left, height, width = self.window or (0, 0, *whole)
        rows, columns = self.image.shape[-2:]
        x, y = (at[0] - left) * columns / width, (at[1] - top) * rows / height
        return min(max(x, 0.0), float(columns)), min(max(y, 0.0), float(rows))


class Turn(NamedTuple):
    """One step's part of the endless stream of examples, and the geometry that it is seen in."""

    geometry: "Geometry"
    first: int  # examples of the stream before it
    images: int  # of the global batch


class Geometry(ABC):
    """How an example is framed: its image perhaps cropped, then resized; its boxes follow.

    With `crop_area` below 1 a random part of at least that area is cut out first (3:4 to 4:3; not in the papers, useful
    on small data); boxes follow as tv_tensors, and regions cut away are dropped.
    """

    crop_area: float
    least: ClassVar[int] = 1  # the smallest batch of a step is a batch by this

    @abstractmethod
    def sides(self, height: int, width: int) -> tuple[int, int]:
        """Height and width, in pixels, that an image of that size is resized to."""

    @property
    @abstractmethod
    def pixels(self) -> int:
        """The side of the largest square that it resizes to: how large drawings are to be drawn."""

    @abstractmethod
    def turn(self, seed: int, step: int, batch_size: int) -> Turn:
        """What a step takes of the stream, and how it sees it: a pure function."""

    @abstractmethod
    def batch(self, images: Sequence[Tensor]) -> Batch:
        """Framed images [3, h, w] uint8 as the fields "image..." of a batch."""

    @abstractmethod
    def grid(self, image: Tensor, tokens: int) -> tuple[int, int]:
        """Rows and columns of the patches of a framed image [3, h, w] whose tower makes `tokens` of it, padding too."""

    @abstractmethod
    def __str__(self) -> str:
        """What size images are seen at, in words."""

    def visit(self, example: Example, rng: np.random.Generator, language: str | None) -> Visit:
        """Draw a visit of `example`; captions of `language` are preferred."""
        window = self._window(example.image, rng)
        image, regions = self._show(example, window)
        captions = [c for c in example.captions if c.language == language] or list(example.captions)
        caption = captions[rng.integers(len(captions))] if captions else None
        return Visit(example, image, regions, caption, window)

    def apply(self, example: Example, rng: np.random.Generator | None) -> tuple[Tensor, tuple[Region, ...]]:
        """Image and regions in the frame; without a generator, never cropped (evaluation)."""
        return self._show(example, self._window(example.image, rng))

    def _window(self, image: Tensor, rng: np.random.Generator | None) -> Window:
        if self.crop_area < 1 and rng is not None:
            return self._crop(image, rng)
        return 0, 0, image.shape[-2], image.shape[-1]

    def _show(self, example: Example, window: Window) -> tuple[Tensor, tuple[Region, ...]]:
        image, regions = example.image, example.regions
        top, left, height, width = window
        down, across = self.sides(height, width)
        if image.shape[-2:] == (height, width) == (down, across):  # nothing to do: rendered at this size
            return image, regions
        image = transform.resized_crop(image, top, left, height, width, [down, across], antialias=True)
        if not regions:
            return image, regions
        boxes = tv_tensors.BoundingBoxes(
            [r.bbox for r in regions], format="XYXY", canvas_size=example.image.shape[-2:], dtype=torch.float64
        )
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        moved = transform.resized_crop(boxes, top, left, height, width, [down, across])
        whole = areas * (across / width) * (down / height)
        clipped = transform.clamp_bounding_boxes(moved)
        left_over = (clipped[:, 2] - clipped[:, 0]).clamp(min=0) * (clipped[:, 3] - clipped[:, 1]).clamp(min=0)
        kept = left_over >= SMALLEST * whole
        return image, tuple(
            replace(region, bbox=tuple(box))
            for region, box, keep in zip(regions, clipped.tolist(), kept.tolist(), strict=True)
            if keep
        )

    def _crop(self, image: Tensor, rng: np.random.Generator) -> Window:
        height, width = image.shape[-2:]
        area = height * width * rng.uniform(self.crop_area, 1.0)
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w = int(min(width, max(1, round(np.sqrt(area * ratio)))))
        h = int(min(height, max(1, round(np.sqrt(area / ratio)))))
        return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w


@dataclass(frozen=True)
class Frame(Geometry):
    """What all recipes but NaFlex share: a square of `resolution`, the aspect ratio given up as big_vision does."""

    resolution: int
    crop_area: float = 1.0

    def sides(self, height: int, width: int) -> tuple[int, int]:
        return self.resolution, self.resolution

    @property
    def pixels(self) -> int:
        return self.resolution

    def turn(self, seed: int, step: int, batch_size: int) -> Turn:
        return Turn(self, step * batch_size, batch_size)

    def batch(self, images: Sequence[Tensor]) -> Batch:
        return {"image": torch.stack(list(images))}

    def grid(self, image: Tensor, tokens: int) -> tuple[int, int]:
        side = math.isqrt(tokens)
        return side, side

    def __str__(self) -> str:
        return f"{self.resolution} × {self.resolution} pixels"


class Field(ABC):
    """What a recipe draws from each visit and how a batch holds it, from the share `start` of training on.

    Fields draw in the recipe's order from one generator, so one that begins late stands last.
    """

    start: float = 0.0

    @abstractmethod
    def draw(self, visit: Visit, rng: np.random.Generator, pipeline: TextPipeline) -> Any:
        """One example's part, every random choice made."""

    @abstractmethod
    def collate(self, drawn: Sequence[Any], pipeline: TextPipeline) -> Batch:
        """The batch's fields, from what `draw` gave for its examples."""


class Images(Field):
    """image [B, 3, S, S] uint8, the plain view; the loader makes it float in [-1, 1] on the device."""

    def draw(self, visit: Visit, rng: np.random.Generator, pipeline: TextPipeline) -> Tensor:
        return visit.image

    def collate(self, drawn: Sequence[Tensor], pipeline: TextPipeline) -> Batch:
        return {"image": torch.stack(list(drawn))}


class Texts(Field):
    """text [B, L] int64, the visit's caption for the text tower; has_text [B] bool.

    With `told`, also what telling it needs (CoCa): text_weights [B, L] float32, 1/|y| on its tokens and eos, and
    text_scored [M], their places in the flattened texts.
    """

    def __init__(self, *, told: bool = False) -> None:
        self.told = told

    def draw(self, visit: Visit, rng: np.random.Generator, pipeline: TextPipeline) -> tuple[np.ndarray, bool]:
        return pipeline.fixed(visit.caption.text if visit.caption else ""), visit.caption is not None

    def collate(self, drawn: Sequence[tuple[np.ndarray, bool]], pipeline: TextPipeline) -> Batch:
        batch = _texts("text", drawn)
        if not self.told:
            return batch
        real = (batch["text"] != pipeline.policy.pad_id) & batch["has_text"][:, None]
        weights = real / real.sum(1, keepdim=True).clamp(min=1)
        return batch | {"text_weights": weights, "text_scored": real.flatten().nonzero()[:, 0]}


class SecondTexts(Field):
    """second_text [B, L] int64: a synthetic caption, else another one than the visit's, else the same.    (TIPS)"""

    def draw(self, visit: Visit, rng: np.random.Generator, pipeline: TextPipeline) -> tuple[np.ndarray, bool]:
        choice = rng.random()
        language = visit.caption.language if visit.caption else None
        synthetic = visit.example.extras.get("captions_synthetic", ())
        others = [c for c in visit.example.captions if c != visit.caption and c.language == language]
        texts = [c for c in synthetic if c.language == language] or list(synthetic) or others
        caption = texts[int(choice * len(texts))] if texts else visit.caption
        return pipeline.fixed(caption.text if caption else ""), caption is not None

    def collate(self, drawn: Sequence[tuple[np.ndarray, bool]], pipeline: TextPipeline) -> Batch:
        return _texts("second_text", drawn)


def _texts(name: str, drawn: Sequence[tuple[np.ndarray, bool]]) -> Batch:
    ids, has = zip(*drawn, strict=True)
    return {name: torch.from_numpy(np.stack(ids)), f"has_{name}": torch.tensor(has)}
