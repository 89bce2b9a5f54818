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


class Patches(NamedTuple):
    """Images of any aspect ratio as rows of patches, padded to one length (NaFlex)."""

    values: Tensor  # [B, N, P * P * 3], a patch's pixels by row, column, colour
    shapes: Tensor  # [B, 2] int64, rows and columns of patches
    valid: Tensor  # [B, N] bool: the patches of an image, row by row; the rest is padding, wherever it stands

    @classmethod
    def of(cls, batch: Batch, view: str) -> "Patches":
        """Those of a batch's view; its three fields are named after it."""
        return cls(batch[view], batch[f"{view}_shapes"], batch[f"{view}_valid"])

    def to_batch(self, view: str) -> Batch:
        """The inverse of `of`."""
        return {view: self.values, f"{view}_shapes": self.shapes, f"{view}_valid": self.valid}


class TowerStates(NamedTuple):
    """What the head of a frozen tower reads, out of a cache instead of from the tower."""

    values: Tensor  # [B, T, D]

    @classmethod
    def of(cls, batch: Batch, view: str) -> "TowerStates | None":
        """Those of a batch's view; None where it has pixels or ids."""
        return cls(batch[f"{view}_states"]) if f"{view}_states" in batch else None


class Reading(NamedTuple):
    """How a curve of the log is read: a sentence, and the value under which something is wrong."""

    text: str
    least: float | None = None


def pixels(batch: Batch, view: str) -> Tensor | Patches | TowerStates:
    """A batch's view as the image tower takes it: patches, or [B, 3, H, W] (of [B, V, 3, H, W] B * V images)."""
    if (states := TowerStates.of(batch, view)) is not None:
        return states
    return Patches.of(batch, view) if f"{view}_shapes" in batch else batch[view].flatten(0, -4)
