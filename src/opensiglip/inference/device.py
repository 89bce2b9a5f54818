"""The device and precision that a model is used on, and its memory."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch

from opensiglip.errors import UserError

Autocast = Callable[[], AbstractContextManager[Any]]


def best_device() -> torch.device:
    """The accelerator, if there is one."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def autocast_on(device: torch.device) -> Autocast:
    """bfloat16 autocast on GPUs that support it; none elsewhere, so that figures are the same on every CPU."""
    enabled = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return partial(torch.autocast, device.type, torch.bfloat16, enabled=enabled)


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turns an accelerator's out-of-memory error into a UserError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(
            "the GPU ran out of memory; give fewer images at once, or hide it (CUDA_VISIBLE_DEVICES=) to use the CPU."
        ) from None
