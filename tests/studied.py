"""Work for the processes that a study starts. A fresh process imports this module, so it imports little."""

import os
import signal
import time
from pathlib import Path

import torch


def threads(_: int) -> int:
    """That torch uses there."""
    return torch.get_num_threads()


def linger(folder: str) -> None:
    """A run that would go on for long."""
    with Path(folder, f"{os.getpid()}.pid").open("a", encoding="utf-8") as file:
        file.write("begun\n")
    time.sleep(120)


def linger_until_asked(folder: str) -> None:
    """`linger`, which takes a signal as training does: by an exception, after which the process could go on."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    linger(folder)
