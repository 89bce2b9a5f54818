"""How far a long task is: a bar in a terminal or notebook, a line every half minute in a log file."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, Self

from tqdm import tqdm

SECONDS = 30.0  # between two lines
quiet = False  # of the whole process; the command line's --quiet


class Lines:
    """tqdm's interface for output that is no terminal, where a redrawn bar would be one endless line.

    Args:
        items: what iterating over this yields; None where `update` counts.
        total: units of the whole task, None where it is not known.
        initial: units that were done before.
        first: units after which a line is due, whatever the clock says, and the time left is told; None: no such line.
    """

    def __init__(
        self,
        items: Iterable[Any] | None = None,
        *,
        total: int | None = None,
        desc: str = "",
        unit: str = "item",
        initial: int = 0,
        first: int | None = None,
    ) -> None:
        self.items, self.total, self.desc, self.unit = items, total, desc, unit
        self.n = self.initial = initial
        self.first, self.note = first, ""
        self.said = time.monotonic()
        self.begun: float | None = None  # when the first units were done: what came before them is no pace
        self.counted = 0  # units since

    def update(self, n: int = 1) -> None:
        """Count so many units."""
        now = time.monotonic()
        if self.begun is None:
            self.begun = now
        else:
            self.counted += n
        self.n += n
        if now - self.said < SECONDS and self.n - self.initial != self.first:
            return
        self.said = now
        print(self.line(now - self.begun), file=sys.stderr, flush=True)

    def set_postfix_str(self, note: str) -> None:
        """What the next line says beside the count."""
        self.note = note

    def line(self, seconds: float) -> str:
        """The line when `counted` units have taken so many seconds: count, what is left at that pace, the note."""
        count = f"{self.unit} {self.n}" if self.total is None else f"{self.unit} {self.n} of {self.total}"
        parts = [f"{self.desc}: {count}" if self.desc else count]
        if self.total is not None and self.counted >= (self.first or 2) - 1:
            parts.append(f"{duration(seconds * (self.total - self.n) / self.counted)} left")
        return ", ".join([*parts, self.note] if self.note else parts)

    def __iter__(self) -> Iterator[Any]:
        for item in self.items or ():
            yield item
            self.update()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is to be taken down."""


def progress(
    items: Iterable[Any] | None = None,
    *,
    total: int | None = None,
    desc: str = "",
    unit: str = "item",
    initial: int = 0,
    first: int | None = None,
    show: bool = True,
    leave: bool = True,
) -> Any:
    """A bar where one can be drawn, lines where not, nothing with `show=False` or --quiet: tqdm's interface.

    Args as of `Lines`; `leave`: a bar stays when it is full.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    if show and not quiet and not sys.stderr.isatty() and "ipykernel" not in sys.modules:
        return Lines(items, total=total, desc=desc, unit=unit, initial=initial, first=first)
    bar: Any = tqdm
    if "ipykernel" in sys.modules:
        from tqdm.auto import tqdm as bar
    return bar(
        items,
        total=total,
        desc=desc,
        unit=unit,
        initial=initial,
        leave=leave,
        smoothing=0.05,
        disable=not show or quiet,
    )


def duration(seconds: float) -> str:
    """The time in the unit that a person would use: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
