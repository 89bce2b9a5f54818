"""Processes forked from a server that has imported what they need and has not trained.

A fresh process imports for seconds; in a fork of this one, torch may refuse to calculate gradients, and accelerate
keeps to the one rank that it found before.
"""

from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

import torch.multiprocessing as mp

context = get_context("forkserver")
context.set_forkserver_preload(["opensiglip.checkpoints.pretrained", "opensiglip.training.run"])


def start_ranks(work: Callable[..., None], arguments: tuple[Any, ...], ranks: int) -> None:
    """Call `work(rank, *arguments)` in so many processes, and wait for all. Raises what one of them raised."""
    mp.start_processes(work, arguments, nprocs=ranks, daemon=True, start_method="forkserver")
