"""Measuring: ways of doing the same work side by side in one process, so that other load hits all alike.

On CPUs one thread and its CPU time; memory is the peak above the level before the call.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opensiglip.errors import UserError
from opensiglip.training.memory import return_freed_memory

Sample = tuple[float, float | None]  # seconds, MiB

SHORTEST = 0.1  # seconds that a timed sample lasts; quicker calls are repeated
PRODUCT = {"cpu": 2048, "cuda": 8192}  # side of the matrices whose product tells the machine's rate


@dataclass(frozen=True)
class Variant:
    """One way of doing the work of a case."""

    name: str
    run: Callable[[], Any]
    floor: float = 0.0  # FLOP of the matrix products that this work can't do without
    items: float = 0.0  # images (or tokens) that one call handles
    facts: dict[str, Any] = field(default_factory=dict)  # more to write down, such as how far from the reference


@dataclass(frozen=True)
class Row:
    """What was measured of one variant."""

    case: str
    variant: str
    seconds: float  # median
    low: float
    high: float
    peak_mib: float | None  # None where the system does not tell
    speed: float  # times as fast as the peer
    over_floor: float | None  # times the products' time at the machine's rate
    per_second: float | None  # items
    facts: dict[str, Any]


def start(device: str) -> torch.device:
    """The device of that name, or the accelerator there is. Raises UserError on a device that is not there."""
    torch.set_num_threads(1)
    if device == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if device not in ("cpu", "cuda"):
        raise UserError(f"--device {device!r} is unknown; give auto, cpu or cuda.")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here; give cpu.")
    return torch.device(device)


def positive(**values: float | Sequence[float]) -> None:
    """Raises UserError naming the first flag that is not above 0."""
    for name, given in values.items():
        for value in given if isinstance(given, Sequence) else [given]:
            if not value > 0:
                raise UserError(f"--{name.replace('_', '-')} {value} is out of range; give a number of more than 0.")


def peer(module: str, package: str) -> Any | None:
    """An optional peer, or None and a line that says that it was left out."""
    try:
        return import_module(module)
    except ImportError:
        print(f"left out: {package} is not installed")
        return None


def agree(results: dict[str, Sequence[Tensor]], reference: str, tolerance: float) -> dict[str, float]:
    """The largest difference of each result from the reference, as a share of its largest number.

    Raises RuntimeError above `tolerance`: what does not compute the same is not compared.
    """
    gaps = {}
    for name, tensors in results.items():
        gaps[name] = 0.0
        for ours, theirs in zip(tensors, results[reference], strict=True):
            largest = float((ours.detach().double() - theirs.detach().double()).abs().max())
            gaps[name] = max(gaps[name], largest / max(1e-30, float(theirs.detach().abs().max())))
        if not gaps[name] <= tolerance:
            raise RuntimeError(f"{name} is {gaps[name]:.1e} away from {reference}: it does not do the same work")
    return gaps


def compare(
    case: str, variants: Sequence[Variant], peer: str, device: torch.device, rounds: int, dtype: torch.dtype
) -> list[Row]:
    """Run the variants in turn, `rounds` times after a call of warm-up, and a matrix product of `dtype` each round."""
    side = PRODUCT["cuda" if device.type == "cuda" else "cpu"]
    matrices = [torch.randn(side, side, device=device).to(dtype) for _ in range(2)]
    product = Variant("product", lambda: matrices[0] @ matrices[1])
    repeats: dict[str, int] = {}
    for variant in (product, *variants):
        if device.type == "cuda":
            variant.run()  # loads its kernels, and tells nothing of how long a call takes
        spent = _time(variant.run, 1, device)
        repeats[variant.name] = 1 if spent > SHORTEST else math.ceil(SHORTEST / max(spent, 1e-6))
    samples: dict[str, list[Sample]] = {name: [] for name in repeats}
    for _ in range(rounds):
        for variant in (product, *variants):
            samples[variant.name].append(sample(variant.run, device, repeats[variant.name]))
    rate = 2 * side**3 / statistics.median(seconds for seconds, _ in samples.pop("product"))
    return rows(case, variants, peer, samples, rate)


def sample(run: Callable[[], Any], device: torch.device, repeats: int = 1) -> Sample:
    """Seconds of one call, the mean over `repeats`; and the peak of its memory above the level before, in MiB."""
    before = _begin_peak(device)
    seconds = _time(run, repeats, device)
    return seconds, None if before is None else max(0.0, _peak(device) - before) / 2**20


def rows(
    case: str, variants: Sequence[Variant], peer: str, samples: dict[str, list[Sample]], rate: float | None = None
) -> list[Row]:
    """The samples of each variant as a row; `rate` in FLOP/s of this machine's products in the same minutes."""
    times = {name: [seconds for seconds, _ in taken] for name, taken in samples.items()}
    peaks = {name: [peak for _, peak in taken if peak is not None] for name, taken in samples.items()}
    medians = {name: statistics.median(values) for name, values in times.items()}
    return [
        Row(
            case,
            name,
            medians[name],
            min(times[name]),
            max(times[name]),
            max(peaks[name], default=None),
            medians[peer] / medians[name],
            medians[name] * rate / variant.floor if rate and variant.floor else None,
            variant.items / medians[name] if variant.items else None,
            variant.facts | ({"GFLOP/s": round(rate / 1e9)} if rate else {}),
        )
        for variant in variants
        for name in [variant.name]
    ]


def _time(run: Callable[[], Any], repeats: int, device: torch.device) -> float:
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    began = clock()
    for _ in range(repeats):
        run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (clock() - began) / repeats


def _begin_peak(device: torch.device) -> float | None:
    """Bytes in use, from where the next peak counts; None where the system does not tell."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    if not Path("/proc/self/clear_refs").exists():
        return None
    return_freed_memory()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    return None


def _peak(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else _status("VmHWM")


def resident() -> float:
    """Bytes of this process in memory, after what is free is given back."""
    return_freed_memory()
    return _status("VmRSS")


def _status(name: str) -> float:
    """A size of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024.0 * float(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
