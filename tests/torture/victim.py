"""A run of a tiny model that tortures itself: it trains as `opensiglip train` does, and dies at the moment it was told.

A moment is a call of the system's by which something of the run's folder changes (a file opened to be written, renamed,
removed, flushed, a folder made), or the calculation of a step. So every place of a checkpoint and of the export is one.
Used by test_runs.py, which forks it: what is imported is imported once.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from once import once

from opensiglip.training import checkpoint, gradient
from opensiglip.training.run import train

CHANGES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}  # Python's audit events
WRITING = os.O_WRONLY | os.O_RDWR


class Moments:
    """Counts the moments of a run in `folder`, and calls `at` at the one of number `fatal`."""

    def __init__(self, folder: Path, fatal: int | None, at: Callable[[], Any]) -> None:
        self.folder, self.fatal, self.at = str(folder), fatal, at
        self.count, self.where, self.off = 0, list[str](), False

    def pass_by(self, what: str) -> None:
        """One moment."""
        if self.off:
            return
        self.off = True  # what follows from it is not one itself
        self.count += 1
        self.where.append(what)
        if self.count == self.fatal:
            self.at()
        self.off = False

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Python's hook, which sees the system calls that change files."""
        if self.off or event not in CHANGES or not arguments or not isinstance(arguments[0], str | os.PathLike):
            return
        path = os.fspath(arguments[0])
        writes = event != "open" or bool((arguments[2] or 0) & WRITING)
        if writes and isinstance(path, str) and path.startswith(self.folder):
            self.pass_by(f"{event} {os.path.relpath(path, self.folder)}")

    def watch(self) -> "Moments":
        """From here on."""
        sys.addaudithook(self.audit)
        accumulate, save_file = gradient.accumulate, checkpoint.save_file

        def step(*arguments: Any) -> Any:
            self.pass_by("step")
            return accumulate(*arguments)

        def tensors(*arguments: Any) -> Any:  # in Rust, which Python's hook does not see: before, and half written
            self.pass_by("before tensors")
            result = save_file(*arguments)
            path = Path(arguments[1])
            if self.fatal == self.count + 1:
                os.truncate(path, path.stat().st_size // 2)
            self.pass_by(f"half of {path.name}")
            return result

        gradient.accumulate, checkpoint.save_file = step, tensors
        return self


def go(recipe: str, data: str | list[str], out: Path, *, resume: bool, **changes: Any) -> dict[str, Any]:
    """Six steps with a checkpoint after every second, held-out figures and an export."""
    flags: dict[str, Any] = {"steps": 6, "save_every": 2, "batch_size": 4, "workers": 0, "held_out": 0}
    flags |= {"precision": "fp32", "vocabulary": 300, "memory_check": False, "resume": resume} | changes
    with once():
        return train(recipe, data=[data] if isinstance(data, str) else data, out=out, **flags)


def killed() -> None:
    """As the system does it: no handler, no clean-up."""
    os.kill(os.getpid(), signal.SIGKILL)
