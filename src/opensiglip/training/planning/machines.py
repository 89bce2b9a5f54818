"""What machines have: memory and the peak rate of products, by their makers; and what this one has left."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from opensiglip.errors import UserError
from opensiglip.training.precision import choose

GIB = 2**30
MEASURED = 1024  # side of the matrices whose product tells a CPU's rate
CGROUP = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))


@dataclass(frozen=True)
class Machine:
    """A kind of accelerator: bytes, and dense FLOP/s in each of Accelerate's precisions; 0 where it has none."""

    kind: Literal["cpu", "gpu"]
    memory: int
    rates: dict[str, float]


# Makers' data sheets: SXM where there is a choice; bf16 and fp16 dense on tensor cores, float32 without TF32.
GPUS = {
    "h100": Machine("gpu", 80 * 10**9, {"bf16": 989e12, "fp16": 989e12, "no": 67e12}),
    "h200": Machine("gpu", 141 * 10**9, {"bf16": 989e12, "fp16": 989e12, "no": 67e12}),
    "a100": Machine("gpu", 80 * 10**9, {"bf16": 312e12, "fp16": 312e12, "no": 19.5e12}),
    "l40s": Machine("gpu", 48 * 10**9, {"bf16": 362e12, "fp16": 362e12, "no": 91.6e12}),
    "t4": Machine("gpu", 16 * 10**9, {"bf16": 0.0, "fp16": 65e12, "no": 8.1e12}),
}
NAMES = (*GPUS, "cpu")


def machine(name: str, precision: str) -> tuple[Machine, str]:
    """A machine by name, and Accelerate's name of the precision that a run of `--precision` has there.

    "cpu" is this machine's, its rate measured. Raises UserError on what is unknown.
    """
    if name == "cpu":
        mixed, _ = choose(precision, torch.device("cpu"))
        return Machine("cpu", free_memory(torch.device("cpu")) or 0, {mixed: _cpu_rate(mixed)}), mixed
    if name not in GPUS:
        raise UserError(f"--gpu {name!r} is unknown; give {', '.join(NAMES)}.")
    found, named = GPUS[name], {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
    mixed = ("bf16" if found.rates["bf16"] else "fp16") if precision == "auto" else named.get(precision, "")
    if not found.rates.get(mixed):
        there = ", ".join(word for word, key in named.items() if found.rates[key])
        raise UserError(f"--precision {precision}: an {name} has {there}; give one of these, or auto.")
    return found, mixed


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process can still take on a device; None where the system does not tell."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None
    return min([available, *_cgroup_limits()])


def _cgroup_limits() -> list[int]:
    """What a container's limit leaves, by either version of cgroups."""
    left = []
    for limit, used in CGROUP:
        try:
            texts = [(Path("/sys/fs/cgroup") / name).read_text(encoding="ascii").strip() for name in (limit, used)]
            left.append(int(texts[0]) - int(texts[1]))
        except (OSError, ValueError):  # another version, or "max"
            continue
    return left


def _cpu_rate(mixed: str) -> float:
    """FLOP/s of a product on torch's threads: the best of three."""
    dtype = torch.bfloat16 if mixed == "bf16" else torch.float32
    a = torch.ones(MEASURED, MEASURED, dtype=dtype)
    times = []
    for _ in range(4):  # the first makes the kernel
        began = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - began)
    return 2 * MEASURED**3 / min(times)
