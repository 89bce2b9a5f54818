"""NaFlex: images keep their aspect ratio, and a budget of patches says how large they are.    (SigLIP 2, Sec. 2.4.2)"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from opensiglip.data.fields.frame import Geometry, StepSlice
from opensiglip.types import Batch, Patches

BUDGETS = (128, 256, 576, 784, 1024)
BUDGET = 2  # what a generator is for; first word of its seed, as in data/loader.py
EPSILON = 1e-5  # of the ratio
WIDTHS = 16  # rows are padded to a multiple of this


@dataclass(frozen=True)
class NaFlex(Geometry):
    """Images of at most so many patches: `budget` of them, and in training one of `budgets` for each batch.

    Steps go in rounds. A round takes the budgets in an order drawn from (seed, round): each has a whole batch of
    examples, the largest in two halves, one a step ("half the batch size and double the number of training steps").
    So every budget sees as many examples, the stream is read without a gap, and where a step stands in it is known
    without counting. That the draw is without replacement in a round is ours; the paper draws uniformly.
    """

    patch: int  # pixels of a side
    budget: int
    budgets: tuple[int, ...] = BUDGETS
    crop_area: float = 1.0
    batch_multiple: ClassVar[int] = 2

    def sides(self, height: int, width: int) -> tuple[int, int]:
        return resized(height, width, self.patch, self.budget)

    @property
    def pixels(self) -> int:
        return math.isqrt(max(*self.budgets, self.budget)) * self.patch

    def step_slice(self, seed: int, step: int, batch_size: int) -> StepSlice:
        largest = max(self.budgets)
        steps = [*self.budgets, largest]
        number, place = divmod(step, len(steps))
        order = [steps[i] for i in np.random.default_rng([BUDGET, seed, number]).permutation(len(steps))]
        counts = [batch_size // 2 if budget == largest else batch_size for budget in order]
        first = number * batch_size * len(self.budgets) + sum(counts[:place])
        return StepSlice(replace(self, budget=order[place]), first, counts[place])

    def batch(self, images: Sequence[Tensor]) -> Batch:
        """image [B, N, P * P * 3] uint8, image_shapes [B, 2] int64 and image_valid [B, N] bool: a `Patches`.

        N is the longest image's number of patches, rounded up to a multiple of 16, at most the largest budget.
        """
        longest = max(image.shape[-2] * image.shape[-1] // self.patch**2 for image in images)
        length = min(-(-longest // WIDTHS) * WIDTHS, max(*self.budgets, self.budget))
        return pack(images, self.patch, length).to_batch("image")

    def grid(self, image: Tensor, tokens: int) -> tuple[int, int]:
        return image.shape[-2] // self.patch, image.shape[-1] // self.patch

    def __str__(self) -> str:
        drawn = f"; in training {' '.join(map(str, self.budgets))}" if len(self.budgets) > 1 else ""
        return f"at most {self.budget} patches of {self.patch} × {self.patch} pixels in their own aspect ratio{drawn}"


def resized(height: int, width: int, patch: int, budget: int) -> tuple[int, int]:
    """The size in whole patches, at most `budget` of them, at which an image of that size keeps its aspect ratio.

    Each side is rounded up to whole patches, so the ratio is bent by less than one patch of either; the largest scale
    that fits is searched by halving.    (big_vision pp/proj/image_text/ops_naflex.py:23-79; transformers'
    Siglip2ImageProcessor, whose arithmetic this is to the last bit)
    """

    def at(scale: float) -> tuple[int, int]:
        down, across = (max(1, math.ceil(side * scale / patch)) * patch for side in (height, width))
        return down, across

    low, high = EPSILON / 10, 100.0
    while high - low >= EPSILON:
        middle = (low + high) / 2
        down, across = at(middle)
        if down * across <= budget * patch**2:
            low = middle
        else:
            high = middle
    return at(low)


def patchify(image: Tensor, patch: int) -> Tensor:
    """[3, h, w], sides in whole patches -> [N, P * P * 3], patches row by row, in each row, column, colour."""
    return image.unflatten(2, (-1, patch)).unflatten(1, (-1, patch)).permute(1, 3, 2, 4, 0).flatten(2).flatten(0, 1)


def pack(images: Sequence[Tensor], patch: int, length: int) -> Patches:
    """Images [3, h, w] of one type, sides in whole patches, padded with zeros to `length` patches."""
    rows = [patchify(image, patch) for image in images]
    values = torch.zeros(len(rows), length, 3 * patch**2, dtype=rows[0].dtype)
    valid = torch.zeros(len(rows), length, dtype=torch.bool)
    for place, row in enumerate(rows):
        values[place, : len(row)] = row
        valid[place, : len(row)] = True
    shapes = torch.tensor([[image.shape[-2] // patch, image.shape[-1] // patch] for image in images])
    return Patches(values, shapes, valid)
