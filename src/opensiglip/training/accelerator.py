"""The Accelerator of a run: device, ranks, trackers; and the run's precision."""

from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, LoggerType

from opensiglip.distributed import meet_again
from opensiglip.errors import UserError
from opensiglip.training.precision import choose, multiply


def make_accelerator(precision: str, trackers: Sequence[str], folder: Path) -> tuple[Accelerator, str, str]:
    """It; the precision and why (`choose`). Raises UserError on a precision or tracker that is unknown."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    assert device is not None
    mixed, why = choose(precision, device)
    multiply(mixed, device)
    available = [*map(str, get_available_trackers()), "all"]
    known = [str(one) for one in LoggerType if one != LoggerType.ALL]
    for name in trackers:
        if name not in known and name != "all":
            raise UserError(f"--trackers {name} is unknown; there are {', '.join(known)}.")
        if name not in available:
            raise UserError(f"--trackers {name} needs its library; `pip install {name.replace('_', '-')}`.")
    meet_again("gloo" if device.type == "cpu" else None)
    accelerator = Accelerator(
        mixed_precision="no",  # the step does its own autocast
        cpu=device.type == "cpu",
        log_with=list(trackers) or None,
        project_dir=folder,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    return accelerator, mixed, why
