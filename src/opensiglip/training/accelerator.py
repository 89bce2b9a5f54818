"""The Accelerator of a run: device, ranks, precision, trackers."""

from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs

from opensiglip.errors import UserError
from opensiglip.training.precision import choose, multiply


def make_accelerator(precision: str, trackers: Sequence[str], folder: Path) -> tuple[Accelerator, str]:
    """It, and why the precision is what it is. Raises UserError on a precision or tracker that is unknown."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    assert device is not None
    mixed, why = choose(precision, device)
    multiply(mixed, device)
    available = [*map(str, get_available_trackers()), "all"]
    for name in trackers:
        if name not in available:
            raise UserError(f"--trackers {name} is unknown or not installed; there are {', '.join(available)}.")
    AcceleratorState._reset_state()  # an earlier run of this process may have had another precision
    accelerator = Accelerator(
        mixed_precision=mixed,
        cpu=device.type == "cpu",
        log_with=list(trackers) or None,
        project_dir=folder,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    return accelerator, why
