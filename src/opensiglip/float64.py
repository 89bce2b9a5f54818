"""The widest floating-point numbers of a device: float64, but float32 on Apple's GPUs (MPS), which have no float64."""

import torch
from torch import Tensor


def widest(device: torch.device) -> torch.dtype:
    """The dtype that sums on `device` are taken in."""
    return torch.float32 if device.type == "mps" else torch.float64


def widen(x: Tensor) -> Tensor:
    """x in the widest dtype of its device."""
    return x.to(widest(x.device))
