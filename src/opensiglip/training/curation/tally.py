"""How often a run has read and selected each example, and at which score: counts in bounded memory."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from opensiglip.float64 import widen

MOST = 2**18  # rows that are counted; 24 bytes each, in memory and in a checkpoint


@dataclass(frozen=True)
class Counted:
    """One example of a run."""

    row: int  # its number among those of all sources
    seen: int  # visits that were scored
    selected: int  # of them, those that were trained on
    score: float  # mean of its own pair over these visits


class Tally:
    """Of every `stride`-th row, so that at most `MOST` are counted: visits with a text, selections, sum of scores."""

    def __init__(self, rows: int) -> None:
        self.rows, self.stride = rows, max(1, -(-rows // MOST))
        count = -(-rows // self.stride)
        self.seen = torch.zeros(count, dtype=torch.int64)
        self.selected = torch.zeros(count, dtype=torch.int64)
        self.scores = torch.zeros(count, dtype=torch.float64)

    def add(self, rows: Tensor, own: Tensor, valid: Tensor, chosen: Tensor) -> None:
        """A step's: of all ranks' examples the rows [B] int64, scores [B] and texts [B] bool; places [b] chosen."""
        taken = torch.zeros_like(valid)
        taken[chosen] = True
        rows, taken, own, valid = (values.cpu() for values in (rows, taken, own, valid))
        counted = valid & (rows % self.stride == 0)
        at = rows[counted] // self.stride
        self.seen.index_add_(0, at, torch.ones_like(at))
        self.selected.index_add_(0, at, taken[counted].long())
        self.scores.index_add_(0, at, widen(own[counted]).nan_to_num(0.0, 0.0, 0.0))

    def ends(self, count: int) -> tuple[list[Counted], list[Counted]]:
        """The `count` most and the `count` least selected of the rows that were read, no row in both.

        The order is by selections beyond those expected of as many visits, then by the mean score, then by the row.
        """
        read = self.seen.nonzero()[:, 0].numpy()
        seen, selected, scores = (values.numpy()[read] for values in (self.seen, self.selected, self.scores))
        share, mean = selected.sum() / max(1, seen.sum()), scores / seen
        order = np.lexsort((read, -mean, -(selected - share * seen))).tolist()  # by the last of them first
        found = [
            Counted(int(read[at]) * self.stride, int(seen[at]), int(selected[at]), float(mean[at]))
            for at in [*order[:count], *order[count:][-count:][::-1]]
        ]
        return found[:count], found[count:]

    @property
    def examples(self) -> int:
        """How many of the rows that are counted were read."""
        return int(self.seen.count_nonzero())

    def save(self, path: Path) -> None:
        """Write the counts."""
        save_file(self.tensors() | {"rows": torch.tensor([self.rows])}, path)

    def restore(self, path: Path) -> None:
        """Go on from what `save` wrote; from zero where there is nothing, or counts of other data."""
        found = load_file(path) if path.is_file() else {}
        if found and int(found["rows"]) == self.rows:
            for name, tensor in self.tensors().items():
                tensor.copy_(found[name])

    def tensors(self) -> dict[str, Tensor]:
        """The counts, by name."""
        return {"seen": self.seen, "selected": self.selected, "scores": self.scores}
