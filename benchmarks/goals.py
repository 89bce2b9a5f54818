"""Measured figures beside the goals that were set for them, and a bound on the time that measuring takes."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch

LATE = "the time was over"
H200 = 790e12  # FLOP/s of its bf16 product


class OutOfTime(BaseException):
    """`--minutes` are over. Not an Exception: libraries that go on after one must not go on after this."""


@dataclass(frozen=True)
class Goal:
    """A figure to measure, and the bound that was set for it, if any."""

    number: str  # of the goal, such as G1; "" where none was set
    what: str
    unit: str
    bound: float | None = None
    at_most: bool = False  # by default the figure is to be at least the bound


@dataclass(frozen=True)
class Figure:
    """A goal's measured value, or why there is none."""

    goal: Goal
    value: float | str
    judged: bool = True  # the sizes and the device are of the kind that the bound is for

    @property
    def factor(self) -> float | None:
        """How many times as good as the bound; None where that is not judged, or the value is not above 0."""
        bound = self.goal.bound
        if bound is None or isinstance(self.value, str) or not self.judged or self.value <= 0:
            return None
        return bound / self.value if self.goal.at_most else self.value / bound

    @property
    def reached(self) -> bool | None:
        """Whether the value keeps the bound; None where that is not judged."""
        bound = self.goal.bound
        if bound is None or isinstance(self.value, str) or not self.judged:
            return None
        return self.value <= bound if self.goal.at_most else self.value >= bound

    def __str__(self) -> str:
        goal = self.goal
        words = [f"{goal.number:<3}{goal.what}: "]
        words += [
            f"not measured, {self.value}" if isinstance(self.value, str) else f"{self.value:.4g} {goal.unit}".rstrip()
        ]
        if goal.bound is not None:
            words += [f"; goal {'at most' if goal.at_most else 'at least'} {goal.bound:g}"]
        if self.reached is not None:
            words += [", reached" if self.reached else ", not reached"]
        if self.factor is not None:
            words += [f" ({self.factor:.2f}x)"]
        return "".join(words)

    def to_json(self) -> dict[str, Any]:
        """Plain values; `value` is null where nothing was measured, and `why` says why."""
        why = self.value if isinstance(self.value, str) else None
        value = None if why is not None else self.value
        more = {"value": value, "why": why, "reached": self.reached, "factor": self.factor}
        return vars(self.goal) | more


def mfu(flop: float, seconds: float, rate: float) -> float:
    """Model FLOP utilisation: the share of `rate` in FLOP/s at which a step's `flop` are done."""
    return flop / seconds / rate


def reason(error: Exception) -> str:
    """Why something could not be measured, in words."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "out of memory"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"{error.name.partition('.')[0]} is not installed"
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


@contextmanager
def time_bound(seconds: float) -> Iterator[None]:
    """Raises OutOfTime inside once so many seconds are over, at once for 0. For the main thread of a POSIX system."""
    if seconds <= 0:
        raise OutOfTime

    def late(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    handler, began = signal.signal(signal.SIGALRM, late), time.monotonic()
    left, every = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again: code that runs in a destructor drops it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:  # of whoever called
            signal.setitimer(signal.ITIMER_REAL, max(1e-3, left - (time.monotonic() - began)), every)
