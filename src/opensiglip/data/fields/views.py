"""Additional views of an image, for self-distillation: crops that are augmented, and which of their patches are hidden.

Drawn from the original image, so sigmoid and captions keep the plain one ("to ensure that augmentation does not hurt
alignment", SigLIP 2, Sec. 2.3).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transform

from opensiglip.data.fields.field import Field, Visit
from opensiglip.data.fields.frame import Range, random_window
from opensiglip.data.text import TextPipeline
from opensiglip.types import Batch

# SILC's photometric augmentations are not established; these are DINOv2's (data/augmentations.py:43-94).
FLIP, JITTER, GREY = 0.5, 0.8, 0.2  # how likely
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.4, 0.4, 0.2, 0.1  # how much
SIGMA, KERNEL = (0.1, 2.0), 9  # of the blur, in pixels of a view of `side`
SOLARIZE_FROM = 128  # values from here on are turned round


class Photometry(NamedTuple):
    """How likely one kind of view is blurred and solarized; `side`: of DINOv2's views of that kind, in pixels."""

    blur: float
    solarize: float
    side: int


FIRST_GLOBAL, OTHER_GLOBAL, LOCAL = Photometry(1.0, 0.0, 224), Photometry(0.1, 0.2, 224), Photometry(0.5, 0.0, 96)


def local_side(resolution: int, patch: int) -> int:
    """Pixels of a local crop's side: 96 of 256 (recalled of SILC), rounded to whole patches, at least two."""
    return max(2, round(resolution * 96 / 256 / patch)) * patch


class Views(Field):
    """global [B, G, 3, S, S] and local [B, L, 3, s, s] uint8: crops of those shares of the image's area, augmented."""

    def __init__(
        self,
        resolution: int,
        patch: int,
        *,
        wholes: int = 1,
        locals: int = 8,
        global_area: Range = (0.4, 1.0),
        local_area: Range = (0.05, 0.4),
        start: float = 0.0,
    ) -> None:
        """SILC's areas; `resolution` and `patch` of the tower, in pixels."""
        self.sides = resolution, local_side(resolution, patch)
        self.counts, self.areas, self.start = (wholes, locals), (global_area, local_area), start

    def draw(self, visit: Visit, rng: np.random.Generator, pipeline: TextPipeline) -> list[Tensor]:
        wholes, locals_ = self.counts
        kinds = [FIRST_GLOBAL, *[OTHER_GLOBAL] * (wholes - 1)], [LOCAL] * locals_
        return [
            torch.stack([augment(crop(visit.example.image, side, area, rng), kind, rng) for kind in some])
            for side, area, some in zip(self.sides, self.areas, kinds, strict=True)
        ]

    def collate(self, drawn: Sequence[list[Tensor]], pipeline: TextPipeline) -> Batch:
        wholes, locals_ = zip(*drawn, strict=True)
        return {"global": torch.stack(wholes), "local": torch.stack(locals_)}


class PatchMask(Field):
    """mask_indices [B, M] int64: M = round(ratio * N) of the N patches of a square view, uniformly drawn, in order."""

    def __init__(self, resolution: int, patch: int, *, ratio: float, start: float = 0.0) -> None:
        self.patches, self.start = (resolution // patch) ** 2, start
        self.count = max(1, round(ratio * self.patches))

    def draw(self, visit: Visit, rng: np.random.Generator, pipeline: TextPipeline) -> np.ndarray:
        return np.sort(rng.permutation(self.patches)[: self.count])

    def collate(self, drawn: Sequence[np.ndarray], pipeline: TextPipeline) -> Batch:
        return {"mask_indices": torch.from_numpy(np.stack(drawn))}


def crop(image: Tensor, side: int, area: Range, rng: np.random.Generator) -> Tensor:
    """A random part [3, side, side] of `image` [3, H, W]: that share of its area, 3:4 to 4:3 before it is squared."""
    height, width = image.shape[-2:]
    window = random_window(height, width, area, rng)
    return transform.resized_crop(image, *window, [side, side], antialias=True)


def augment(image: Tensor, kind: Photometry, rng: np.random.Generator) -> Tensor:
    """Flip, colour jitter, grey, blur and solarization, each by chance; the same number of draws whatever happens.

    The jitter's four steps keep one order, where torchvision's ColorJitter shuffles them.
    """
    flip, jitter, grey, blur, solarize, *amounts, sigma = rng.random(10)
    brightness, contrast, saturation, hue = (2 * amount - 1 for amount in amounts)
    if flip < FLIP:
        image = transform.horizontal_flip(image)
    if jitter < JITTER:
        image = transform.adjust_brightness(image, 1 + BRIGHTNESS * brightness)
        image = transform.adjust_contrast(image, 1 + CONTRAST * contrast)
        image = transform.adjust_saturation(image, 1 + SATURATION * saturation)
        image = transform.adjust_hue(image, HUE * hue)
    if grey < GREY:
        image = transform.rgb_to_grayscale(image, num_output_channels=3)
    if blur < kind.blur:
        scale = image.shape[-1] / kind.side  # the same share of another side
        kernel = max(3, 2 * round((KERNEL // 2) * scale) + 1)
        image = transform.gaussian_blur(image, [kernel] * 2, [scale * (SIGMA[0] + (SIGMA[1] - SIGMA[0]) * sigma)] * 2)
    if solarize < kind.solarize:
        image = transform.solarize(image, SOLARIZE_FROM)
    return image
