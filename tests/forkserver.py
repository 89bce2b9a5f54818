"""Processes forked from a server that has imported what they need and has not trained.

A fresh process imports for seconds; in a fork of this one, torch may refuse to calculate gradients, and accelerate
keeps to the one rank that it found before.
"""

import pickle
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

import torch.multiprocessing as mp

context = get_context("forkserver")
context.set_forkserver_preload(["opensiglip.checkpoints.pretrained", "opensiglip.training.run", "hypothesis", "pytest"])


def start_ranks(work: Callable[..., None], arguments: tuple[Any, ...], ranks: int) -> None:
    """Call `work(rank, *arguments)` in so many processes, and wait for all. Raises what one of them raised."""
    # By value: torch would hand each tensor over as an open file, and the server takes few.
    given = (work, pickle.dumps(arguments))
    mp.start_processes(_call, given, nprocs=ranks, daemon=True, start_method="forkserver")


def _call(rank: int, work: Callable[..., None], arguments: bytes) -> None:
    work(rank, *pickle.loads(arguments))
