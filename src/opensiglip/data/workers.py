"""The processes that make batches: how one begins, and what is said of one that the system has killed."""

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from opensiglip.errors import UserError

# What torch says of a worker that is gone: its process, and the signal if it knows it.
LOST_WORKER = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: (\w+)|exited unexpectedly)"
)


def begin_worker(worker: int) -> None:
    """One thread; what a scheduler or Ctrl-C asks of all processes is the main one's to answer, which ends these."""
    torch.set_num_threads(1)
    for name in ("SIGINT", "SIGUSR1", "SIGTERM"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


@contextmanager
def lost_workers() -> Iterator[None]:
    """Inside, torch's error about a worker that is gone is a UserError, which says whether memory ran out."""
    killed = kills_for_memory()
    try:
        yield
    except RuntimeError as error:
        if (found := LOST_WORKER.search(str(error))) is None:
            raise
        memory = kills_for_memory() > killed
        why = "memory ran out" if memory else "it does so where memory runs out; somebody else may have, too"
        raise UserError(
            f"data worker (process {found[1]}) was killed by the system ({found[2] or 'SIGKILL'}): {why}; give fewer "
            "--workers, a smaller --batch-size, or more memory."
        ) from error


def kills_for_memory() -> int:
    """Processes of this machine that the system has ended for want of memory; 0 where it does not say."""
    try:
        counts = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    except OSError:
        return 0
    return int(counts.get("oom_kill", 0))
