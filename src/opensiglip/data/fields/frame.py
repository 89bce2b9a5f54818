"""How an example is framed: which part of its image is seen, at what size, and where its boxes then are."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transform

from opensiglip.data.example import Example, Region
from opensiglip.data.fields.mirror import mirror, names_sides
from opensiglip.data.size_schedule import SizeSchedule
from opensiglip.types import Batch

Window = tuple[int, int, int, int]  # top, left, height, width: a part of an image
Range = tuple[float, float]

RATIOS: Range = (3 / 4, 4 / 3)  # width to height of a random part, as torchvision's RandomResizedCrop
SMALLEST = 0.5  # of a region's area must survive a crop; less, and its phrase no longer fits what is left


def random_window(height: int, width: int, area: Range, rng: np.random.Generator) -> Window:
    """A random part of an image of that size: at least a share of its area, drawn from the range `area`.

    Its sides are 3:4 to 4:3, or the nearest to that at which so much of the image fits: of a panorama all its height.
    """
    share, ratio = height * width * rng.uniform(*area), np.exp(rng.uniform(*np.log(RATIOS)))
    ratio = min(max(ratio, share / height**2), width**2 / share)
    w = min(width, math.ceil(np.sqrt(share * ratio)))
    h = min(height, math.ceil(share / w))
    return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w


class StepSlice(NamedTuple):
    """One step's part of the endless stream of examples, and the frame that it is seen in."""

    frame: "Geometry"
    first: int  # examples of the stream before it
    size: int  # examples of the global batch


class Geometry(ABC):
    """How an example is framed: its image perhaps cropped, then resized; its boxes follow.

    With `crop_area` below 1 a random part of at least that area is cut out first (not in the papers, useful on small
    data); boxes follow, and regions of which less than half is left are dropped. The share `flip` of what is seen in
    training is mirrored, but no example that names a side.
    """

    crop_area: float
    flip: float = 0.0
    interpolation: str = "bilinear"  # or bicubic
    batch_multiple: ClassVar[int] = 1  # batch sizes are multiples of this

    @property
    def starts(self) -> tuple[float, ...]:
        """The shares of training from which on images have another size."""
        return ()

    def at(self, progress: float) -> "Geometry":
        """The frame of a step at the share `progress` of training."""
        return self

    @abstractmethod
    def sides(self, height: int, width: int) -> tuple[int, int]:
        """Height and width, in pixels, that an image of that size is resized to."""

    @property
    @abstractmethod
    def pixels(self) -> int:
        """The side of the largest square that it resizes to: how large drawings are to be drawn."""

    @abstractmethod
    def step_slice(self, seed: int, step: int, batch_size: int) -> StepSlice:
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

    def apply(self, example: Example, rng: np.random.Generator | None) -> tuple[Tensor, tuple[Region, ...]]:
        """Image and regions in the frame; without a generator, never cropped (evaluation)."""
        return self.cut(example, self.window(example.image, rng))

    def window(self, image: Tensor, rng: np.random.Generator | None) -> Window:
        """The part of an image [3, H, W] that is seen: all of it, or in training with `crop_area` a random part."""
        height, width = image.shape[-2:]
        if self.crop_area < 1 and rng is not None:
            return random_window(height, width, (self.crop_area, 1.0), rng)
        return 0, 0, height, width

    def mirrors(self, example: Example, rng: np.random.Generator) -> bool:
        """Is an example seen mirrored? Without `flip` nothing is drawn."""
        return self.flip > 0 and rng.random() < self.flip and not names_sides(example)

    def cut(self, example: Example, window: Window, mirrored: bool = False) -> tuple[Tensor, tuple[Region, ...]]:
        """That part of the image in the size of the frame, and the regions that are still mostly in it."""
        image, regions = self._cut(example, window)
        return mirror(image, regions) if mirrored else (image, regions)

    def _cut(self, example: Example, window: Window) -> tuple[Tensor, tuple[Region, ...]]:
        image, regions = example.image, example.regions
        top, left, height, width = window
        down, across = self.sides(height, width)
        if image.shape[-2:] == (height, width) == (down, across):  # nothing to do: rendered at this size
            return image, regions
        kind = transform.InterpolationMode(self.interpolation)
        part = image[:, top : top + height, left : left + width]
        return transform.resize(part, [down, across], kind, antialias=True), moved(regions, window, (down, across))

    def regions(self, example: Example) -> tuple[Region, ...]:
        """Those of `apply` without a generator, of an example without pixels too."""
        height, width = example.image.shape[-2:]
        sides = self.sides(height, width)
        return example.regions if sides == (height, width) else moved(example.regions, (0, 0, height, width), sides)


def moved(regions: tuple[Region, ...], window: Window, sides: tuple[int, int]) -> tuple[Region, ...]:
    """Regions of an image of which `window` is resized to `sides`, height and width; those mostly outside are gone."""
    if not regions:
        return regions
    top, left, height, width = window
    boxes, corner = np.array([region.bbox for region in regions]), np.array([left, top, left, top])
    seen = np.clip(boxes, corner, corner + [width, height, width, height])
    kept = _area(seen) >= SMALLEST * _area(boxes)
    found = (seen - corner) * np.array([sides[1], sides[0]] * 2) / [width, height, width, height]
    return tuple(
        replace(region, bbox=tuple(box))
        for region, box, keep in zip(regions, found.tolist(), kept.tolist(), strict=True)
        if keep
    )


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


@dataclass(frozen=True)
class Frame(Geometry):
    """What all recipes but NaFlex share: a square of `resolution`, the aspect ratio given up as big_vision does."""

    resolution: int
    crop_area: float = 1.0
    interpolation: str = "bilinear"
    flip: float = field(default=0.0, repr=False)  # nothing that a cache of states hangs on

    def sides(self, height: int, width: int) -> tuple[int, int]:
        return self.resolution, self.resolution

    @property
    def pixels(self) -> int:
        return self.resolution

    def step_slice(self, seed: int, step: int, batch_size: int) -> StepSlice:
        return StepSlice(self, step * batch_size, batch_size)

    def batch(self, images: Sequence[Tensor]) -> Batch:
        return {"image": torch.stack(list(images))}

    def grid(self, image: Tensor, tokens: int) -> tuple[int, int]:
        side = math.isqrt(tokens)
        return side, side

    def __str__(self) -> str:
        return f"{self.resolution} × {self.resolution} pixels"


@dataclass(frozen=True)
class GrowingFrame(Frame):
    """A square that grows while training; `resolution` is its last size, and its size outside training."""

    schedule: SizeSchedule = field(kw_only=True)

    @property
    def starts(self) -> tuple[float, ...]:
        return self.schedule.starts

    def at(self, progress: float) -> Frame:
        return Frame(self.schedule.at(progress), self.crop_area, self.interpolation, self.flip)

    def __str__(self) -> str:
        return self.schedule.describe("{0} × {0} pixels")
