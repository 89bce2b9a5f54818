"""One process at a time: in a run's folder, by a lock with pid, host and time, which a dead one does not hold."""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import lock_descriptor

from opensiglip.checkpoints.run_folder import RunFolder
from opensiglip.errors import UserError

BEAT, ALIVE = 10.0, 60.0  # seconds between signs of life; since the last one, in which another host's run lives
HELD: set[int] = set()  # descriptors, which a forked data worker is not to hold on to


@contextmanager
def held(run: RunFolder) -> Iterator[None]:
    """Inside, no other process trains in the folder. Raises UserError where one does.

    On one machine the system's lock tells, and goes with its process. Between machines whose file system does not share
    those, the time of the last sign of life does.
    """
    file = _taken(run)
    HELD.add(file)
    ended = threading.Event()
    beat = threading.Thread(target=_beat, args=(file, ended), daemon=True)
    beat.start()
    try:
        yield
    finally:
        ended.set()
        beat.join()
        run.lock.unlink(missing_ok=True)
        HELD.discard(file)
        os.close(file)


@contextmanager
def turn(file: Path, why: str) -> Iterator[None]:
    """Inside, no other process is at what the lock `file` is for: this one waits, and says why.

    On a file system without locks nobody waits.
    """
    with file.open("w") as opened:
        with suppress(OSError):
            if not lock_descriptor(opened.fileno(), blocking=False):
                print(f"{why}: this one waits", flush=True)
                lock_descriptor(opened.fileno())
        yield


def _taken(run: RunFolder) -> int:
    """The lock's descriptor, ours now. Raises UserError."""
    file = os.open(run.lock, os.O_RDWR | os.O_CREAT, 0o644)
    owner, age = _owner(file), time.time() - os.fstat(file).st_mtime
    elsewhere = bool(owner) and owner["host"] != socket.gethostname() and age < ALIVE
    try:
        alive = not lock_descriptor(file, blocking=False) or elsewhere
    except OSError:  # a file system without locks
        alive = bool(owner) and age < ALIVE
    if alive:
        os.close(file)
        who = f"process {owner['pid']} on {owner['host']} since {owner['since']}" if owner else "another process"
        mend = f"if that machine is dead, wait {ALIVE:.0f} s" if elsewhere else "let it end, or name another folder"
        raise UserError(f"--out {run.path} is trained in by {who}; {mend}.")
    if not run.lock.exists() or run.lock.stat().st_ino != os.fstat(file).st_ino:  # its owner ended just now
        os.close(file)
        return _taken(run)
    if owner:
        print(f"lock        process {owner['pid']} on {owner['host']}, which trained here, is dead", flush=True)
    os.ftruncate(file, 0)
    now = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    os.pwrite(file, json.dumps(now).encode(), 0)
    return file


def _beat(file: int, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        os.utime(file)


def _owner(file: int) -> dict[str, Any]:
    """Who wrote the lock; empty where nobody did, or was killed while doing so."""
    try:
        facts = json.loads(os.pread(file, 4096, 0))
        return {name: facts[name] for name in ("pid", "host", "since")}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _let_go() -> None:
    while HELD:
        os.close(HELD.pop())


if hasattr(os, "register_at_fork"):  # Windows forks no process
    os.register_at_fork(after_in_child=_let_go)
