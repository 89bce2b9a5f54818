"""The goldens: arrays that big_vision's own code computed."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

GOLDENS = Path(__file__).parent / "goldens"


def load(name: str) -> dict[str, np.ndarray]:
    """A golden's arrays."""
    with np.load(GOLDENS / f"{name}_big_vision.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def under(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Those below a path, named from there."""
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
