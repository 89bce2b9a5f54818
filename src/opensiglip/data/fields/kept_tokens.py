"""Token dropping: which patches of an image the tower reads.    (FLIP, arXiv:2212.00794; CLIPA, arXiv:2305.07017)"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from opensiglip.data.fields.field import Field, Visit
from opensiglip.data.text import TextPipeline
from opensiglip.types import Batch

WIDTHS = 16  # rows of unequal length are padded to a multiple of this, as NaFlex's patches are
BITS = 6  # of a coordinate in the ordered dither: its pattern repeats after 64 patches


class KeptTokens(Field):
    """<view>_kept [B, V, K] int64: of each image's N patches the K = max(1, round(share * N)) that are read, in order.

    Images of a batch may differ in N (NaFlex); shorter rows end in -1. Drawn up to the share `end` of training, from
    when on the batch has no such field and all patches are read.
    """

    def __init__(
        self, share: float, patch: int, *, mask: str = "random", view: str = "image", views: int = 1, end: float
    ) -> None:
        """`patch`: pixels of a side. `mask`: of `MASKS`. `views`: images of the view, each with its own draw."""
        self.share, self.patch, self.mask, self.view, self.views, self.end = share, patch, mask, view, views, end

    def draw(self, visit: Visit, rng: np.random.Generator, pipeline: TextPipeline) -> np.ndarray:
        rows, columns = (side // self.patch for side in visit.image.shape[-2:])
        count = max(1, round(self.share * rows * columns))
        return np.stack([np.sort(MASKS[self.mask](rows, columns, count, rng)) for _ in range(self.views)])

    def collate(self, drawn: Sequence[np.ndarray], pipeline: TextPipeline) -> Batch:
        lengths = {one.shape[1] for one in drawn}
        longest = max(lengths) if len(lengths) == 1 else math.ceil(max(lengths) / WIDTHS) * WIDTHS
        kept = np.full((len(drawn), self.views, longest), -1)
        for row, one in zip(kept, drawn, strict=True):
            row[:, : one.shape[1]] = one
        return {f"{self.view}_kept": torch.from_numpy(kept)}

    def __str__(self) -> str:
        return f"{self.share:g} of an image's patches, {self.mask}, up to {self.end:.0%} of training"


def random(rows: int, columns: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` of a grid's patches, each as likely as any."""
    return rng.permutation(rows * columns)[:count]


def block(rows: int, columns: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` patches that lie together: a part of the grid's own aspect ratio at a random place.

    Its last row may be short.
    """
    across = min(columns, max(1, round(math.sqrt(count * columns / rows))))
    down = math.ceil(count / across)
    if down > rows:
        down, across = rows, math.ceil(count / rows)
    top, left = rng.integers(rows - down + 1), rng.integers(columns - across + 1)
    places = (top + np.arange(down))[:, None] * columns + left + np.arange(across)
    return places.ravel()[:count]


def grid(rows: int, columns: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` patches spread evenly, by ordered dithering at a random shift (Bayer's matrix).

    A quarter of them is one of each 2 x 2, as CLIPA's grid mask; half is a chequerboard.
    """
    y, x = (side + rng.integers(2**BITS) for side in np.indices((rows, columns)))
    rank = sum((2 * ((x ^ y) >> bit & 1) + (y >> bit & 1)) << 2 * (BITS - 1 - bit) for bit in range(BITS))
    return np.argsort(np.ravel(rank), kind="stable")[:count]


MASKS: dict[str, Callable[[int, int, int, np.random.Generator], np.ndarray]] = {
    "random": random,
    "block": block,
    "grid": grid,
}
