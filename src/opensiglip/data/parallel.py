"""The same task for many numbers, in processes, with the results in order: what indexes, converts and counts."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from opensiglip.errors import UserError

Result = TypeVar("Result")


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """What a task gave, or why it could not."""

    result: Result | None
    error: str | None = None


class Tasks(Dataset[Outcome[Result]], Generic[Result]):
    """Item `number` is the outcome of that task."""

    def __init__(self, task: Callable[[int], Result]) -> None:
        self.task = task

    def __getitem__(self, number: int) -> Outcome[Result]:
        try:
            return Outcome(self.task(number))
        except UserError as error:  # as a value, since torch puts a traceback into an error's message
            return Outcome(None, str(error))


def each(task: Callable[[int], Result], count: int, workers: int) -> Iterator[Result]:
    """task(0), ..., task(count - 1), made in `workers` processes (0: in this one). Raises UserError of a task."""
    if workers < 0:
        raise UserError(f"--workers {workers} is out of range; give 0 for this process alone, or more.")
    return _outcomes(task, count, min(workers, count))


def _outcomes(task: Callable[[int], Result], count: int, workers: int) -> Iterator[Any]:
    tasks: DataLoader[Outcome[Result]] = DataLoader(
        Tasks(task),
        batch_size=None,
        sampler=range(count),
        num_workers=workers,
        prefetch_factor=2 if workers else None,
        collate_fn=same,
        worker_init_fn=one_thread if workers else None,
    )
    try:
        for outcome in tasks:
            if outcome.error is not None:
                raise UserError(outcome.error)
            yield outcome.result
    except RuntimeError as error:
        if "exited unexpectedly" not in str(error):
            raise
        raise UserError("a worker process was killed from outside; give fewer --workers if memory ran out.") from None


def default_workers() -> int:
    """The CPUs that this process may use; 0, this process alone, for one."""
    count = len(os.sched_getaffinity(0))
    return count if count > 1 else 0


def same(value: Any) -> Any:
    return value


def one_thread(worker: int) -> None:
    """Of torch, in each worker process."""
    torch.set_num_threads(1)
