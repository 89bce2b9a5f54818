"""The KV cache of a text decoder: each layer's keys and values of the images, and of the tokens so far."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

GROWTH = 16  # positions that are allocated at once


class RowGroups(NamedTuple):
    """Which image each row attends to: the rows of one image attend to its keys together, as more queries."""

    image: Tensor  # [B] int64
    slot: Tensor  # [B] int64: the row's number among those of its image
    images: int
    slots: int  # the most rows of an image

    @classmethod
    def of(cls, owners: Tensor) -> "RowGroups":
        """The groups of rows that attend to the images `owners` [B] int64; each image has a row."""
        counts = owners.bincount()
        order = owners.argsort(stable=True)
        slot = torch.empty_like(owners)
        slot[order] = torch.arange(len(owners), device=owners.device) - (counts.cumsum(0) - counts)[owners[order]]
        return cls(owners, slot, len(counts), int(counts.max()))

    def by_image(self, x: Tensor) -> Tensor:
        """Rows [B, R, D] -> [images, slots * R, D], zero where an image has fewer rows."""
        grouped = x.new_zeros(self.images, self.slots, *x.shape[1:])
        grouped[self.image, self.slot] = x
        return grouped.flatten(1, 2)

    def by_row(self, x: Tensor) -> Tensor:
        """The inverse of `by_image`."""
        return x.unflatten(1, (self.slots, -1))[self.image, self.slot]


@dataclass
class LayerCache:
    """One layer's keys and values, stacked along the first axis."""

    image: Tensor  # [2, images, heads, N, d]
    text: Tensor  # [2, B, heads, allocated positions, d]

    def append(self, positions: Tensor, new: Tensor, length: int) -> Tensor:
        """Store those of new tokens [2, B, heads, R, d] at `positions` [B, R]; return those of the first `length`."""
        if not self.text.shape[3]:  # the first tokens: they stand at positions 0, 1, ...
            self.text = F.pad(new, (0, 0, 0, -length % GROWTH))
            return self.text[..., :length, :]
        if (missing := length - self.text.shape[3]) > 0:
            self.text = F.pad(self.text, (0, 0, 0, missing + -length % GROWTH))
        rows = torch.arange(len(positions), device=positions.device)[:, None]
        self.text[:, rows, :, positions] = new.permute(1, 3, 0, 2, 4)
        return self.text[..., :length, :]


class KVCache(NamedTuple):
    """All layers of a decoder."""

    layers: list[LayerCache]
    groups: RowGroups
    valid: Tensor | None  # [images, N] bool: the image tokens that are not padding

    @classmethod
    def start(cls, image_keys: list[Tensor], owners: Tensor | None, valid: Tensor | None) -> "KVCache":
        """No text yet. image_keys: of each layer [2, images, heads, N, d]; owners [B]: by default a row an image."""
        layers = [LayerCache(image, image[..., :0, :]) for image in image_keys]
        cache = cls(layers, RowGroups.of(torch.arange(image_keys[-1].shape[1], device=image_keys[-1].device)), valid)
        return cache if owners is None else cache.select(owners)

    @property
    def image_mask(self) -> Tensor | None:
        """`valid` as attention takes it, [images, 1, 1, N]."""
        return None if self.valid is None else self.valid[:, None, None]

    def select(self, rows: Tensor) -> "KVCache":
        """Those rows [K] int64, in that order, some perhaps several times. Images without a row are dropped."""
        images, owners = self.groups.image[rows].unique(return_inverse=True)
        every = len(images) == self.groups.images
        layers = [LayerCache(one.image if every else one.image[:, images], one.text[:, rows]) for one in self.layers]
        valid = self.valid if self.valid is None or every else self.valid[images]
        return KVCache(layers, RowGroups.of(owners), valid)
