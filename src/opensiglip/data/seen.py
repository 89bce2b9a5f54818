"""Which images training has read: their perceptual hashes, by which an evaluation finds held-out ones among them."""

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from opensiglip.data.example import Example
from opensiglip.data.stats.duplicates import Words, perceptual_hash

LIMIT = 1_000_000  # images of a run whose hashes are kept: 8 MB
HASH = "image_hash"  # the extra column in which a cache without pixels has it


def image_hash(example: Example, image: Tensor) -> int:
    """That of an example, by `image`, all of it [3, H, W] uint8 at any size. 0, which says nothing, of a scene.

    Scenes are drawn, and two may look alike without being the same.
    """
    if "scene_plan" in example.extras:
        return 0
    return int(example.extras[HASH]) if HASH in example.extras else perceptual_hash(image)


def positions_to_hash(shares: Sequence[float], rows: Sequence[int]) -> int:
    """How much of the stream is read until each source has been read once, `LIMIT` at most."""
    return min(LIMIT, math.ceil(max(count / share for share, count in zip(shares, rows, strict=True))))


def words(hashes: Sequence[int]) -> Words:
    """Hashes as an array [N]."""
    return np.array(hashes, np.uint64)
