"""What flows between the parts, and the one axis legend.

Axes: B images, M candidates on all ranks, T texts of an image, R length of a packed row, L text length, N image tokens,
D width, V vocabulary, H W pixels.
"""

from typing import NamedTuple

from torch import Tensor

Batch = dict[str, Tensor]


class Features(NamedTuple):
    """A tower's output. `pooled` is None where the tower has no pooling; `valid` is None where no token is padding."""

    pooled: Tensor | None  # [B, D]
    tokens: Tensor  # [B, N, D], after the final layer norm
    valid: Tensor | None = None  # [B, N] bool
