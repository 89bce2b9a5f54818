"""What a decoder remembers while it writes: each layer's keys and values of the image, and of the text so far."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

GROWTH = 16  # places that are made at once


@dataclass
class Past:
    """Of one layer, as its attention's `keys` made them."""

    image: Tensor  # [2, B, heads, N, d]
    text: Tensor  # [2, B, heads, so far or more, d]: place p is written when input p is read

    @classmethod
    def of(cls, image: Tensor, owners: Tensor | None) -> "Past":
        """No text yet; row i reads image `owners[i]`, or image i."""
        image = image.contiguous() if owners is None else image[:, owners]  # read at every step: half the time
        return cls(image, image[..., :0, :])

    def write(self, places: Tensor, made: Tensor, size: int) -> Tensor:
        """Put what was `made` [2, B, heads, R, d] of new inputs at their `places` [B, R]; return the first `size`."""
        if (missing := size - self.text.shape[3]) > 0:
            self.text = F.pad(self.text, (0, 0, 0, missing + -size % GROWTH))
        rows = torch.arange(len(places), device=places.device)[:, None]
        self.text[:, rows, :, places] = made.permute(1, 3, 0, 2, 4)
        return self.text[..., :size, :]


class Cache(NamedTuple):
    """Of all layers."""

    layers: list[Past]
    seen: Tensor | None  # [B, 1, 1, N] bool: the image tokens that are not padding

    def take(self, rows: Tensor) -> "Cache":
        """Those rows [K] int64, in that order; one may stand there several times."""
        layers = [Past(past.image[:, rows], past.text[:, rows]) for past in self.layers]
        return Cache(layers, None if self.seen is None else self.seen[rows])
