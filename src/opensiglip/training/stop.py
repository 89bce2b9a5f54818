"""Being asked to stop: SIGTERM, SIGUSR1 and SIGINT let the step end and save it; the second of them stops at once."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NamedTuple

from opensiglip.checkpoints.run_folder import RunFolder
from opensiglip.errors import Stopped

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name))
ONE_REQUEST = 2.0  # seconds in which a launcher passes on to its ranks the signal that they had themselves
GRACE, LOOK = 45.0, 2.0  # seconds that ranks without a launcher have to save; seconds between looks at it


class Wishes(NamedTuple):
    """Requests of any rank that all ranks follow after a step: stop, save a checkpoint."""

    stop: bool
    save: bool


class Stop:
    """Whether a run was asked to stop, and by what."""

    def __init__(self) -> None:
        self.by: str | None = None
        self.stepping = False  # a request waits for the end of the step
        self.since = 0.0

    @contextmanager
    def waits(self) -> Iterator[None]:
        """Inside, whoever asks waits until `by` is looked at. Raises Stopped at the end where nothing has by then."""
        self.stepping = True
        try:
            yield
        finally:
            self.stepping = False
        if self.by is not None:  # since the last step looked
            raise Stopped

    def received(self, number: int, frame: FrameType | None = None) -> None:
        """A signal's handler. Raises Stopped outside steps, and KeyboardInterrupt where it is the second."""
        name = signal.Signals(number).name
        if self.by is None:
            self.by, self.since = name, time.monotonic()
            if not self.stepping:
                raise Stopped
            if launcher() is None and os.environ.get("RANK", "0") == "0":
                self._say("this step ends and is saved")
        elif launcher() is None or time.monotonic() - self.since > ONE_REQUEST:
            raise KeyboardInterrupt

    def asked(self) -> bool:
        """Whether SIGTERM has come, by which launchers end ranks."""
        return self.by == "SIGTERM"

    def agreed(self) -> None:
        """All ranks have ended the step, and stop. Before, a launcher's signal may mean that one of them is gone."""
        if launcher() is not None and os.environ.get("RANK", "0") == "0":
            self._say("this step is saved")

    def _say(self, what: str) -> None:
        """On stderr, not by print, which may be what the signal interrupts."""
        os.write(2, f"{self.by or 'another rank'}: {what}; a second signal stops at once.\n".encode())

    def watch(self, parent: int) -> None:
        """Where the launcher of this rank is gone: ask to stop, and after `GRACE` seconds end."""
        while os.getppid() == parent:
            time.sleep(LOOK)
        self.by = self.by or "the end of its launcher"
        time.sleep(GRACE)
        os.write(2, b"opensiglip: the launcher of this rank is gone and the step did not end: stopped.\n")
        os._exit(Stopped.code)


def launcher() -> int | None:
    """The process that started this rank, by torchrun or what calls it; None where there is none."""
    return os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None


@contextmanager
def stopping(run: RunFolder) -> Iterator[Stop]:
    """Inside, signals ask to stop; what a stop raises says where the run goes on from."""
    stop, main = Stop(), threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, stop.received) for number in SIGNALS} if main else {}
    if (parent := launcher()) is not None:
        threading.Thread(target=stop.watch, args=(parent,), daemon=True).start()
    try:
        yield stop
    except KeyboardInterrupt as error:
        raise type(error)(f"stopped{f' by {stop.by}' if stop.by else ''}{_goes_on(run)}.") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _goes_on(run: RunFolder) -> str:
    newest = run.newest()
    if newest is not None:
        return f"; --resume continues from {newest}"
    if run.begun:
        return " before the first checkpoint: nothing is saved, and --resume begins anew"
    return " before the run began: start it again as it is"
