"""Requests become batches: a bounded queue, and one thread that asks the model what is alike at once."""

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from opensiglip.apps.serve.refusal import Refused


class Question(NamedTuple):
    """What is asked of items, such as ("classify", ("a fox", "a cat")); requests of one question share batches."""

    kind: str
    given: Hashable = ()


Answer = Callable[[Question, Sequence[Any]], Sequence[Any]]  # an answer for each item


@dataclass(eq=False)  # one request is not another, whatever it holds
class Job:
    """One request's items, and where the answers go."""

    question: Question
    items: Sequence[Any]
    arrived: float = field(default_factory=time.monotonic)
    answers: "Future[list[Any]]" = field(default_factory=Future)


class Batcher:
    """Jobs wait in order of arrival; the oldest one's question is asked next, with all that wait for the same."""

    def __init__(self, answer: Answer, *, most: int, room: int, wait: float, seen: Callable[[int], Any] = int) -> None:
        """`most`: items of a batch. `room`: items that may wait.

        `wait`: seconds that the oldest job waits for others to fill its batch. `seen` is told the size of each batch.
        """
        self.answer, self.most, self.room, self.wait = answer, most, room, wait
        self.seen, self.closing = seen, False
        self.jobs: deque[Job] = deque()
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self.thread.start()

    def submit(self, question: Question, items: Sequence[Any]) -> "Future[list[Any]]":
        """Queue items; the future holds an answer for each. Raises Refused: 429 without room, 503 at the end."""
        with self.changed:
            if self.closing:
                raise Refused(503, "the server is stopping; ask another.")
            if self.jobs and self.waiting + len(items) > self.room:
                raise Refused(429, f"{self.waiting} inputs are waiting and {self.room} may; ask again in a moment.")
            job = Job(question, items)
            self.jobs.append(job)
            self.changed.notify()
        return job.answers

    @property
    def waiting(self) -> int:
        """Items in the queue."""
        return sum(len(job.items) for job in self.jobs)

    def close(self) -> None:
        """Answer all that waits, then end."""
        with self.changed:
            self.closing = True
            self.changed.notify()
        self.thread.join()

    def _work(self) -> None:
        while jobs := self._next():
            self.seen(sum(len(job.items) for job in jobs))
            self._ask(jobs)

    def _next(self) -> list[Job]:
        """The jobs of the next batch; none at the end."""
        with self.changed:
            while not self.jobs and not self.closing:
                self.changed.wait()
            if not self.jobs:
                return []
            oldest = self.jobs[0]
            taken = self._alike(oldest)
            while (left := oldest.arrived + self.wait - time.monotonic()) > 0 and not self.closing:
                if sum(len(job.items) for job in taken) >= self.most:
                    break
                self.changed.wait(left)
                taken = self._alike(oldest)
            self.jobs = deque(job for job in self.jobs if job not in taken)
            return taken

    def _alike(self, oldest: Job) -> list[Job]:
        """The jobs of the oldest one's question that fit one batch with it, in order."""
        taken, count = [oldest], len(oldest.items)
        for job in self.jobs:
            if job is not oldest and job.question == oldest.question and count + len(job.items) <= self.most:
                taken.append(job)
                count += len(job.items)
        return taken

    def _ask(self, jobs: Sequence[Job]) -> None:
        """Answer jobs of one question; where that fails, each by itself, so that one spoils no other."""
        asked = [job for job in jobs if job.answers.set_running_or_notify_cancel()]
        if not asked:
            return
        try:
            self._answer(asked)
        except Exception as error:
            for job in asked:
                if len(asked) == 1:
                    job.answers.set_exception(error)
                    continue
                try:
                    self._answer([job])
                except Exception as own:
                    job.answers.set_exception(own)

    def _answer(self, jobs: Sequence[Job]) -> None:
        answers = list(self.answer(jobs[0].question, [item for job in jobs for item in job.items]))
        for job in jobs:
            job.answers.set_result(answers[: len(job.items)])
            answers = answers[len(job.items) :]
