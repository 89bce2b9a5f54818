"""Work for the processes that a study starts. A fresh process imports this module, so it imports little."""

import os
import time
from pathlib import Path

import torch


def threads(_: int) -> int:
    """That torch uses there."""
    return torch.get_num_threads()


def linger(folder: str) -> None:
    """A run that would go on for long."""
    Path(folder, f"{os.getpid()}.pid").touch()
    time.sleep(120)
