"""Work spread over what a machine has: a process on each GPU or, without any, on each CPU core."""

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from itertools import islice
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.queues import Queue
from pathlib import Path
from typing import TypeVar

import torch

Task = TypeVar("Task")
Result = TypeVar("Result")
VISIBLE = "CUDA_VISIBLE_DEVICES"


def places() -> list[str]:
    """The GPUs by name or, without any, an empty name for each CPU core: small runs gain nothing from a second."""
    if gpus := torch.cuda.device_count():
        return (os.environ.get(VISIBLE) or ",".join(map(str, range(gpus)))).split(",")[:gpus]
    return [""] * torch.get_num_threads()


def spread(work: Callable[[Task], Result], tasks: Sequence[Task], places: Sequence[str]) -> Iterator[Result]:
    """Results as they come: one after another in this process, or with several places in a fresh process at each.

    Those processes are silent, and end when this one does, however it ends.
    """
    places = places[: len(tasks)]
    if len(places) < 2:
        yield from map(work, tasks)
        return
    context = get_context("spawn")
    free: Queue[str] = context.Queue()
    for place in places:
        free.put(place)
    threads = max(1, torch.get_num_threads() // len(places))
    left = iter(tasks)
    with ProcessPoolExecutor(len(places), context, initializer=take, initargs=(free, threads)) as pool:
        # No more at once than there are processes: a process whose run is stopped would begin the next in line.
        running = {pool.submit(work, task) for task in islice(left, len(places))}
        try:
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                running |= {pool.submit(work, task) for task in islice(left, len(done))}
                yield from (future.result() for future in done)
        except BaseException:
            for process in active_children():
                process.terminate()
            raise


def take(free: "Queue[str]", threads: int) -> None:
    """In a fresh process, before CUDA wakes up in it: see one GPU and no other, or use so many CPU threads."""
    if place := free.get():
        os.environ[VISIBLE] = place
    torch.set_num_threads(threads)
    sys.stdout = sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (until the process ends)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """What a killed study leaves running would write into the folders of the study that goes on."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
