"""What a decoder remembers while it writes: each layer's keys and values of the images, and of the texts so far."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

GROWTH = 16  # places of a text that are made at once


class Seats(NamedTuple):
    """Which row reads which image: several rows of one image read its keys together, as more queries."""

    image: Tensor  # [B] int64
    seat: Tensor  # [B] int64, counted from 0 for each image
    size: int  # images
    most: int  # rows of an image

    @classmethod
    def of(cls, owners: Tensor) -> "Seats":
        """The seats of rows that read the images `owners` [B], of which each is read."""
        counts = owners.bincount()
        order = owners.argsort(stable=True)
        seat = torch.empty_like(owners)
        seat[order] = torch.arange(len(owners), device=owners.device) - (counts.cumsum(0) - counts)[owners[order]]
        return cls(owners, seat, len(counts), int(counts.max()))

    def images(self, x: Tensor) -> Tensor:
        """Rows [B, R, D] -> [images, most * R, D], empty seats zero."""
        seats = x.new_zeros(self.size, self.most, *x.shape[1:])
        seats[self.image, self.seat] = x
        return seats.flatten(1, 2)

    def rows(self, x: Tensor) -> Tensor:
        """The inverse of `images`."""
        return x.unflatten(1, (self.most, -1))[self.image, self.seat]


@dataclass
class Past:
    """Of one layer, as its attention's `keys` made them."""

    image: Tensor  # [2, images, heads, N, d]
    text: Tensor  # [2, B, heads, so far or more, d]: place p is written when input p is read

    def write(self, places: Tensor, made: Tensor, size: int) -> Tensor:
        """Put what was `made` [2, B, heads, R, d] of new inputs at their `places` [B, R]; return the first `size`."""
        if not self.text.shape[3]:  # nothing was read before: these stand at places 0, 1, ...
            self.text = F.pad(made, (0, 0, 0, -size % GROWTH))
            return self.text[..., :size, :]
        if (missing := size - self.text.shape[3]) > 0:
            self.text = F.pad(self.text, (0, 0, 0, missing + -size % GROWTH))
        rows = torch.arange(len(places), device=places.device)[:, None]
        self.text[:, rows, :, places] = made.permute(1, 3, 0, 2, 4)
        return self.text[..., :size, :]


class Cache(NamedTuple):
    """Of all layers."""

    layers: list[Past]
    seats: Seats
    valid: Tensor | None  # [images, N] bool: the image tokens that are not padding

    def take(self, rows: Tensor) -> "Cache":
        """Those rows [K] int64, in that order; one may stand there several times. Images that no row reads leave."""
        images, owners = self.seats.image[rows].unique(return_inverse=True)
        every = len(images) == self.seats.size
        layers = [Past(past.image if every else past.image[:, images], past.text[:, rows]) for past in self.layers]
        valid = self.valid if self.valid is None or every else self.valid[images]
        return Cache(layers, Seats.of(owners), valid)
