"""A call in a forked process: what came of it, in how much time and memory."""

import os
import pickle
import resource
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from opensiglip.errors import UserError

HANG = 10  # seconds of a core
BLOCKED = 60  # seconds by the clock, on a machine that does other things too
ADDRESSES = 8 << 30  # bytes that the process may take in addition: a bomb is to fail there, not on the machine


class Outcome(NamedTuple):
    """`kind`: "opened", "refused" (one sentence of ours), "crash" or "hang"; bytes above what the fork began with."""

    kind: str
    words: str
    seconds: float
    memory: int


def forked(call: Callable[[], object]) -> Outcome:
    """Call it in a fork of this process, whose imports are there."""
    out, into = os.pipe()
    child = os.fork()
    if not child:
        os.close(out)
        _child(call, into)
    os.close(into)
    with os.fdopen(out, "rb") as answer:
        deadline = time.monotonic() + BLOCKED
        while time.monotonic() < deadline and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(0.005)
        late = time.monotonic() >= deadline
        if late:
            os.kill(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
        said = answer.read()
    seconds = usage.ru_utime + usage.ru_stime
    if late or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU):
        return Outcome("hang", f"{seconds:.0f} s of a core", seconds, 0)
    if not said:
        return Outcome("crash", f"status {status}", seconds, 0)
    kind, words, memory = pickle.loads(said)
    return Outcome(kind, words, seconds, memory)


def _child(call: Callable[[], object], into: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (HANG, HANG + 1))
    pages = int(Path("/proc/self/statm").read_text().split()[0])  # of what the tests before have imported
    most = pages * resource.getpagesize() + ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    warnings.simplefilter("ignore")
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    began = _peak()
    kind, words = "opened", ""
    try:
        call()
    except UserError as error:
        kind, words = "refused", str(error)
        if not words.strip() or "\n" in words or len(words) > 2000:
            kind = "crash"
    except BaseException:
        kind, words = "crash", traceback.format_exc(limit=-6)
    os.write(into, pickle.dumps((kind, words[-3000:], _peak() - began)))
    os._exit(0)


def _peak() -> int:
    """The most memory that this process has had at once, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
