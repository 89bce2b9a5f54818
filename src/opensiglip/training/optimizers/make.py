"""`--optimizer`: one of four over the same groups, and what each keeps of a parameter."""

from collections.abc import Container, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from opensiglip.optim import BETAS, adamw, parameter_groups
from opensiglip.training.config import OptimizerName
from opensiglip.training.optimizers.adafactor import Adafactor
from opensiglip.training.optimizers.muon import MuonAdamW, adamw_state
from opensiglip.training.optimizers.schedule_free import ScheduleFreeAdamW


def make(
    name: OptimizerName,
    module: nn.Module,
    lr: float,
    weight_decay: float,
    slowed: Container[str] = (),
    factor: float = 1.0,
    betas: tuple[float, float] = BETAS,
) -> torch.optim.Optimizer:
    """The optimizer over `parameter_groups`. Every weight decay is decoupled and multiplied by the rate."""
    if name == "adamw":
        return adamw(module, lr, weight_decay, slowed, factor, betas)
    groups = parameter_groups(module, weight_decay, slowed, factor)
    if name == "schedule-free-adamw":
        return ScheduleFreeAdamW(groups, lr, betas)
    return MuonAdamW(module, groups, lr, betas) if name == "muon" else Adafactor(groups, lr, betas)


def fresh(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """What the optimizer keeps of a parameter, as it is before its first step."""
    if isinstance(optimizer, MuonAdamW | Adafactor | ScheduleFreeAdamW):
        return optimizer.fresh(parameter)
    return adamw_state(parameter)


@contextmanager
def averaged(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Within it, the weights are those to be judged and saved; schedule-free AdamW trains others."""
    end_training(optimizer)
    yield
    go_on_training(optimizer)


def end_training(optimizer: torch.optim.Optimizer) -> None:
    """Make the weights those to be judged and saved."""
    if isinstance(optimizer, ScheduleFreeAdamW):
        optimizer.eval()


def go_on_training(optimizer: torch.optim.Optimizer) -> None:
    """Make them those to be trained again, also after a checkpoint was read."""
    if isinstance(optimizer, ScheduleFreeAdamW):
        optimizer.train()


def decays(optimizer: torch.optim.Optimizer) -> bool:
    """Does its rate fall after the warm-up?"""
    return not isinstance(optimizer, ScheduleFreeAdamW)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of what it keeps of all its parameters, numbers of steps aside."""
    kept = (fresh(optimizer, p) for group in optimizer.param_groups for p in group["params"])
    return sum(x.nbytes for state in kept for x in state.values() if x.ndim)
