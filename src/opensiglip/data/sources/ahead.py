"""Shards fetched before they are asked for, by a few threads of each process that share the node's disk cache."""

import atexit
import os
import queue
import threading
from collections.abc import Iterable

from opensiglip.data.sources.remote import RemoteFile

THREADS = 8


class Ahead:
    """A queue of shards to fetch. One that is waiting already is not queued again."""

    def __init__(self) -> None:
        self.queue: queue.Queue[RemoteFile | None] = queue.Queue()
        self.waiting: set[str] = set()
        self.threads = [threading.Thread(target=self._work, daemon=True) for _ in range(THREADS)]
        for thread in self.threads:
            thread.start()
        atexit.register(self.stop)

    def want(self, files: Iterable[RemoteFile]) -> None:
        """Fetch these, the first first."""
        for file in files:
            if file.key not in self.waiting and not file.cache.holds(file.key):
                self.waiting.add(file.key)
                self.queue.put(file)

    def stop(self) -> None:
        """Forget what is not begun, and wait for what is: libraries end before threads would."""
        while not self.queue.empty():
            try:
                self.queue.get_nowait()
            except queue.Empty:
                break
        for _ in self.threads:
            self.queue.put(None)
        for thread in self.threads:
            thread.join(timeout=10)

    def _work(self) -> None:
        while (file := self.queue.get()) is not None:
            file.fetch_ahead()
            self.waiting.discard(file.key)


started: dict[int, Ahead] = {}  # by process: threads do not outlive a fork


def fetch_ahead(files: Iterable[RemoteFile]) -> None:
    """Have these shards fetched by this process's threads."""
    process = os.getpid()
    if process not in started:
        started.clear()
        started[process] = Ahead()
    started[process].want(files)
