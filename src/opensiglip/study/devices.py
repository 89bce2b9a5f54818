"""Work spread over devices: a process on each, which sees no other."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from multiprocessing.queues import Queue
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")
VISIBLE = "CUDA_VISIBLE_DEVICES"


def spread(work: Callable[[Task], Result], tasks: Sequence[Task], devices: int) -> Iterator[Result]:
    """Results as they come: one after another in this process, or with several devices in a fresh process on each."""
    if devices < 2 or len(tasks) < 2:
        yield from map(work, tasks)
        return
    context = get_context("spawn")
    names = (os.environ.get(VISIBLE) or ",".join(map(str, range(devices)))).split(",")[:devices]
    free: Queue[str] = context.Queue()
    for name in names:
        free.put(name)
    with ProcessPoolExecutor(devices, mp_context=context, initializer=take, initargs=(free,)) as pool:
        waiting = [pool.submit(work, task) for task in tasks]
        try:
            for future in as_completed(waiting):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def take(free: "Queue[str]") -> None:
    """In a fresh process, before CUDA wakes up in it: see one device and no other."""
    os.environ[VISIBLE] = free.get()
