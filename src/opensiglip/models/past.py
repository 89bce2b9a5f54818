"""What a decoder remembers while it writes: each layer's keys and values of the image, and of the text so far."""

from typing import NamedTuple

import torch
from torch import Tensor


class Past(NamedTuple):
    """Of one layer, as its attention's `key_value` made them."""

    image: Tensor  # [B, N, 2 D]
    text: Tensor  # [B, L, 2 D]: place p is written when input p is read; what lies beyond is masked

    def write(self, places: Tensor, made: Tensor) -> Tensor:
        """Put what was `made` [B, R, 2 D] of new inputs at their `places` [B, R]; return the whole text's."""
        self.text[torch.arange(len(places), device=places.device)[:, None], places] = made
        return self.text


class Cache(NamedTuple):
    """Of all layers."""

    layers: list[Past]
    seen: Tensor | None  # [B, 1, 1, N] bool: the image tokens that are not padding

    def take(self, rows: Tensor) -> "Cache":
        """Those rows [K] int64, in that order; one may stand there several times."""
        layers = [Past(past.image[rows], past.text[rows]) for past in self.layers]
        return Cache(layers, None if self.seen is None else self.seen[rows])
