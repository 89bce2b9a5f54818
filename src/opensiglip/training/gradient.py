"""The gradient of one step's global batch, clipped, with the means over ranks of its losses and notes."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from opensiglip.distributed import average
from opensiglip.objectives.base import Notes
from opensiglip.training.accumulate import accumulate
from opensiglip.training.learner import Learner, denominators
from opensiglip.training.sharding import whole
from opensiglip.types import Batch

DROPOUT = 3  # first word of a generator's seed: what it is for


def seed_dropout(seed: int, step: int, rank: int) -> None:
    """Make dropout a function of (seed, step, rank), so that a resumed run drops the same units."""
    torch.manual_seed(int(np.random.default_rng([DROPOUT, seed, step, rank]).integers(2**63)))


def clipped_gradient(
    wrapped: nn.Module,
    learner: Learner,
    parts: list[Batch],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    clip_norm: float,
    device: torch.device,
    no_sync: Callable[[Any], AbstractContextManager[Any]],
    beside: Callable[[], Notes],
) -> tuple[dict[str, float], Notes, float]:
    """Leave the clipped gradient of the global batch in `.grad`; return its losses, notes and norm before clipping.

    wrapped: the learner as it is called on these ranks. no_sync: a context in which they do not average a part's
    gradient. beside: asked after the gradient for more values to average over ranks, returned among the notes.
    """
    live = denominators(learner, parts).to(device, torch.float32)

    def backward(loss: Tensor) -> None:
        scaler.scale(loss).backward()  # scaled in fp16, so that small gradients do not underflow

    losses, notes = accumulate(wrapped, learner, parts, live, backward, no_sync)
    scaler.unscale_(optimizer)
    trained = [p for p in learner.parameters() if p.grad is not None]
    norm = whole(torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None]))
    torch.nn.utils.clip_grads_with_norm_(trained, clip_norm, norm)
    # One all-reduce for all values of the step; the gradient is already averaged over ranks, so its norm is equal.
    means: dict[str, Tensor] = average({f"loss {name}": loss for name, loss in losses.items()} | notes | beside())
    numbers = torch.stack([means.pop(f"loss {name}") for name in losses]).tolist()
    return dict(zip(losses, numbers, strict=True)), means, float(norm)
