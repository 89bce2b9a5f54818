"""The slow copy of a module that self-distillation learns from."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn


class Slow(nn.Module):
    """An exponential moving average of a module's weights: never trained, never in the optimizer.

    F_T <- m F_T + (1 - m) F_S after each step.    (SILC, Eq. 2; DINO)
    """

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.copy = deepcopy(source).requires_grad_(False)
        self.source = [source]  # listed: not a submodule

    @torch.no_grad()
    def forward(self, *inputs: Tensor) -> Any:
        return self.copy(*inputs)

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """Move towards the source; momentum 0 copies it."""
        for slow, fast in zip(self.copy.parameters(), self.source[0].parameters(), strict=True):
            slow.lerp_(fast.detach().to(slow.dtype), 1 - momentum)
