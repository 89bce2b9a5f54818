"""Additional views of an image, for self-distillation: crops that are augmented, and which of their patches are hidden.

Drawn from the original image, so sigmoid and captions keep the plain one ("to ensure that augmentation does not hurt
alignment", SigLIP 2, Sec. 2.3).
"""

from collections.abc import Sequence
from copy import copy

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transform

from opensiglip.data.fields.field import Field, Visit
from opensiglip.data.fields.frame import Range, random_window
from opensiglip.data.fields.photometry import DRAWS, FIRST_GLOBAL, LOCAL, OTHER_GLOBAL, augment
from opensiglip.data.text import TextPipeline
from opensiglip.types import Batch


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
        self.patch, self.sides = patch, (resolution, local_side(resolution, patch))
        self.counts, self.areas, self.start = (wholes, locals), (global_area, local_area), start

    def resized(self, resolution: int) -> "Views":
        found = copy(self)
        found.sides = resolution, local_side(resolution, self.patch)
        return found

    def draw(self, visit: Visit, rng: np.random.Generator, pipeline: TextPipeline) -> list[Tensor]:
        wholes, locals_ = self.counts
        kinds = [FIRST_GLOBAL, *[OTHER_GLOBAL] * (wholes - 1)], [LOCAL] * locals_
        views = []
        # Colours side by side, which is how the resizing of crops reads them; a decoded image may lie so already.
        image = visit.example.image[None].contiguous(memory_format=torch.channels_last)[0]
        for side, area, some in zip(self.sides, self.areas, kinds, strict=True):
            # Of each view its window, then its chances: the order of the generator's draws.
            drawn = [(crop(image, side, area, rng), rng.random(DRAWS)) for _ in some]
            crops, chances = zip(*drawn, strict=True)
            views.append(augment(torch.stack(crops), some, np.stack(chances)))
        return views

    def collate(self, drawn: Sequence[list[Tensor]], pipeline: TextPipeline) -> Batch:
        wholes, locals_ = zip(*drawn, strict=True)
        return {"global": torch.stack(wholes), "local": torch.stack(locals_)}


class PatchMask(Field):
    """mask_indices [B, M] int64: M = round(ratio * N) of the N patches of a square view, uniformly drawn, in order."""

    def __init__(self, resolution: int, patch: int, *, ratio: float, start: float = 0.0) -> None:
        self.ratio, self.patch, self.start = ratio, patch, start
        self.patches = (resolution // patch) ** 2
        self.count = max(1, round(ratio * self.patches))

    def resized(self, resolution: int) -> "PatchMask":
        found = PatchMask(resolution, self.patch, ratio=self.ratio, start=self.start)
        found.end = self.end
        return found

    def draw(self, visit: Visit, rng: np.random.Generator, pipeline: TextPipeline) -> np.ndarray:
        return np.sort(rng.permutation(self.patches)[: self.count])

    def collate(self, drawn: Sequence[np.ndarray], pipeline: TextPipeline) -> Batch:
        return {"mask_indices": torch.from_numpy(np.stack(drawn))}


def crop(image: Tensor, side: int, area: Range, rng: np.random.Generator) -> Tensor:
    """A random part [3, side, side] of `image` [3, H, W]: that share of its area, 3:4 to 4:3 before it is squared."""
    height, width = image.shape[-2:]
    window = random_window(height, width, area, rng)
    return transform.resized_crop(image, *window, [side, side], antialias=True)
