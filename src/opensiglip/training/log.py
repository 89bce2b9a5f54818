"""metrics.jsonl, trackers and the progress bar: one row of numbers, three readers."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from opensiglip.disk import whole_file
from opensiglip.errors import UserError
from opensiglip.progress import progress

EVERY_STEP_BELOW = 200
ESTIMATE_AFTER = 20  # steps, by which their time is even enough to say how long the run takes

Row = dict[str, float | None]  # numbers by name; None where one is not finite


class Log:
    """Rows of numbers by step. Only the main process writes."""

    def __init__(
        self, accelerator: Accelerator, path: Path, first: int, steps: int, every: int, resumed: bool = False
    ) -> None:
        """`first`: the step to go on from; rows of later steps, of a run cut short, go. Says what of them is lost."""
        self.accelerator, self.path, self.every, self.steps = accelerator, path, every, steps
        self.writes = accelerator.is_main_process
        if self.writes:
            if resumed and not path.is_file():
                print(f"{path} is missing: the rows of the steps before {first} are lost.", flush=True)
            kept = [line for line in read_lines(path, say=True) if line["step"] < first]
            with whole_file(path) as part:
                part.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self.bar = progress(total=steps, initial=first, unit="step", first=ESTIMATE_AFTER, show=self.writes)
        self.started = self.last = time.perf_counter()
        self.since = 0  # images, since the last row
        self.seen = 0  # images

    def step(self, step: int, values: Row, images: int) -> None:
        """Count a step of so many images, and write its row if it is one to write.

        These are all below 200, every N-th after, and the last.
        """
        self.since += images
        self.seen += images
        if self.writes and (step < EVERY_STEP_BELOW or step % self.every == 0 or step == self.steps - 1):
            now = time.perf_counter()
            row = values | {"images_per_second": self.since / max(now - self.last, 1e-9)}
            self.last, self.since = now, 0
            self.write(step, row)
            self.bar.set_postfix_str(summary(row))
        self.bar.update()

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """Write a row, from the main process: for `step`'s own, or for what was measured after it."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}, allow_nan=False) + "\n")
        self.accelerator.log({name: value for name, value in values.items() if value is not None}, step=step)

    def pause(self, seconds: float) -> None:
        """Time spent on something other than training does not count against the rate."""
        self.last += seconds
        self.started += seconds

    def rate(self) -> float:
        """Images a second over the whole session."""
        return self.seen / max(time.perf_counter() - self.started, 1e-9)

    def close(self) -> None:
        """Take the bar down."""
        self.bar.close()


def read_lines(path: Path, say: bool = False) -> list[dict[str, Any]]:
    """The whole rows of a metrics file. Rows that can't be read are skipped; with `say` their number is printed.

    A last row that a kill cut short is skipped silently. Raises UserError if the file can't be read.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) if path.exists() else []
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}); move it away, and the run continues.") from error
    rows, lost = [], 0
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
        else:
            lost += line.endswith("\n")
    if say and lost:
        print(f"{path}: {lost} of {len(lines)} rows can't be read and are left out.", flush=True)
    return rows


def summary(row: Mapping[str, float | None]) -> str:
    """A row in a few words: the loss, its terms, the rate."""
    if row.get("loss") is None:
        return "step skipped"
    terms = {name.removeprefix("loss/"): value for name, value in row.items() if name.startswith("loss/") and value}
    parts = ", ".join(f"{name} {value:.3f}" for name, value in terms.items())
    return f"loss {row['loss']:.3f} ({parts}), {row['images_per_second']:.0f} images/s"


def finite(value: float) -> float | None:
    """The number, or None where it is none: non-finite values are never logged as numbers."""
    return value if math.isfinite(value) else None
