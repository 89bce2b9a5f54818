"""RUN/seen.safetensors: the perceptual hashes of the images that a run has read (data/seen.py)."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from opensiglip.data.seen import LIMIT
from opensiglip.data.stats.duplicates import Words
from opensiglip.disk import whole_file
from opensiglip.distributed import gathered

NAME = "hashes"
HEADER = 4096  # bytes, more than that of one tensor has


@dataclass
class SeenImages:
    """What a rank has read since the file was written."""

    new: list[Words] = field(default_factory=list)

    def add(self, hashes: Words) -> None:
        """A step's, as many on each rank."""
        self.new.append(hashes)

    def save(self, path: Path, device: torch.device, *, write: bool) -> None:
        """Add all ranks' new hashes to the file, where this process is the one to `write`; called on all ranks.

        A set, sorted: a run that went on from a checkpoint adds again what it reads again.
        """
        if not self.new:
            return
        mine = torch.from_numpy(np.concatenate(self.new).view(np.int64)).to(device)
        found = gathered(mine).cpu().numpy().view(np.uint64)
        self.new.clear()
        if write:
            every = np.unique(np.concatenate([read_seen(path), found[found != 0]]))[:LIMIT]
            if len(every):
                with whole_file(path) as part:
                    save_file({NAME: torch.from_numpy(every.view(np.int64))}, part)


def read_seen(path: Path) -> Words:
    """The hashes [N] in a file; none where there is no file, or none that can be read."""
    try:
        hashes = load_file(path)[NAME] if path.stat().st_size < 8 * LIMIT + HEADER else torch.empty(0)
    except (OSError, KeyError, SafetensorError):
        return np.empty(0, np.uint64)
    return (
        hashes.numpy().view(np.uint64) if hashes.dtype == torch.int64 and hashes.ndim == 1 else np.empty(0, np.uint64)
    )
