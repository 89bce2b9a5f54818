"""The EMA teacher: an exponential moving average of a module's weights."""

import math
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Momentum:
    """How much an average keeps at each step: `start`, or from there to `end` along a cosine (DINO's schedule).

    With `heads_alone` only the heads have averages, and the teacher's tower is the student's (TIPSv2).
    """

    start: float
    end: float | None = None
    heads_alone: bool = False

    def at(self, progress: float) -> float:
        """Its value when the share `progress` of the teacher's time is over."""
        end = self.start if self.end is None else self.end
        return end - (end - self.start) * (1 + math.cos(math.pi * progress)) / 2


class Ema(nn.Module):
    """A copy whose weights average the source's: F_T <- m F_T + (1 - m) F_S after each step.    (SILC, Eq. 2; DINO)

    Never trained, always in eval mode, and without `source` in its state. torch's AveragedModel fixes the momentum when
    it is made, counts its updates in a buffer, and leaves its parameters trainable and its mode to the caller.
    """

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.copy = deepcopy(source).requires_grad_(False).eval()
        self.source = [source]  # in a list, so that it is no submodule

    def train(self, mode: bool = True) -> "Ema":
        return super().train(False)

    @torch.no_grad()
    def forward(self, *inputs: Tensor) -> Any:
        return self.copy(*inputs)

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """Average the source's weights into the copy's, and copy its buffers; momentum 0 copies all."""
        source = self.source[0]
        for average, weight in zip(self.copy.parameters(), source.parameters(), strict=True):
            average.lerp_(weight.detach().to(average.dtype), 1 - momentum)
        for buffer, now in zip(self.copy.buffers(), source.buffers(), strict=True):
            buffer.copy_(now)
