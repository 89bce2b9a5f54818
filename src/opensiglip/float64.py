"""The widest floating-point numbers of a device: float64, but float32 on Apple's GPUs (MPS), which have no float64."""

import torch
from torch import Tensor


def widest(device: torch.device) -> torch.dtype:
    """The dtype that sums on `device` are taken in."""
    return torch.float32 if device.type == "mps" else torch.float64


def widen(x: Tensor) -> Tensor:
    """x in the widest dtype of its device."""
    return x.to(widest(x.device))


def moved(x: Tensor, device: torch.device) -> Tensor:
    """x on `device`, where float64 becomes the widest dtype: a device that has no float64 takes no such tensor."""
    if x.dtype == torch.float64:
        x = x.to(widest(device))
    return x.to(device, non_blocking=True)
