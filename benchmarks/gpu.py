"""The goals that were set for an H200, measured by one command within a bound on its time."""

import gc
import time
from pathlib import Path

import torch

from benchmarks.goals import LATE, Figure, OutOfTime, reason, time_bound
from benchmarks.gpu_parts import BATCH, PAIRS, PARTS, SIZES, VOCABULARIES, Part, has_goals, parts_of
from benchmarks.gpu_setting import Found, Setting
from benchmarks.measure import Row, positive, start
from benchmarks.report import plot, table, write
from opensiglip.errors import UserError
from opensiglip.models.sizes import shapes
from opensiglip.training.precision import multiply


def bench(
    minutes: float = 8.0,
    parts: tuple[str, ...] = PARTS,
    sizes: tuple[str, ...] = SIZES,
    images: int = 256,
    batch: int = BATCH,
    vocabularies: tuple[int, int] = VOCABULARIES,
    pairs: int = PAIRS,
    compile: bool = True,
    workers: int | None = None,
    rounds: int = 5,
    device: str = "auto",
    out: Path = Path("runs/bench"),
) -> None:
    """All goals for one H200 in bf16: MFU, images per second, losses, memory, loader; beside open_clip and others.

    Each figure is printed once it is measured, beside its goal. What runs out of memory, or needs a library that is
    not installed, says so, and the rest goes on.

    Args:
        minutes: bound on the time; whatever was not measured by then is listed.
        parts: siglip, sigmoid, head, locca, larger, memory, full, loader, decoder; in this order, by default all.
        sizes: size of the networks; of further sizes only the MFU is measured.
        images: images per batch of the training steps.
        batch: images per batch whose captions the head reads (75,000 tokens at 1024), and of the step whose memory is
            measured.
        vocabularies: a small and a large vocabulary size.
        pairs: batch size N of the sigmoid loss.
        compile: also measure compiled steps, ours and the others'.
        workers: data processes of the loader; by default one less than the cores.
        rounds: measurements of each variant, taken in turn; the median is reported.
        device: auto, cpu or cuda.
        out: folder for the JSON and the plot.
    """
    positive(sizes=[len(sizes)], images=images, batch=batch, vocabularies=vocabularies, pairs=pairs, rounds=rounds)
    if minutes < 0 or (workers or 0) < 0:
        raise UserError("--minutes and --workers can't be negative; give numbers of 0 or more.")
    if unknown := [name for name in parts if name not in PARTS]:
        raise UserError(f"--parts {unknown[0]!r} is unknown; there are {', '.join(PARTS)}.")
    for size in sizes:
        shapes(size)
    place, began = start(device), time.monotonic()
    multiply("bf16", place)
    setting = Setting(sizes, images, batch, vocabularies, pairs, compile, workers, rounds, place)
    if not (judged := has_goals(setting)):
        print("The goals are for a GPU and the default sizes: these figures are not judged by them.")
    rows, figures, left_out = list[Row](), list[Figure](), list[dict[str, str]]()
    for part in parts_of(setting, parts):
        found = measured(part, 60 * minutes - (time.monotonic() - began))
        made = [Figure(goal, found.value(key), judged) for key, goal in part.goals.items()]
        print("\n".join([*map(str, made), *(f"   left out: {name}, {why}" for name, why in found.left_out.items())]))
        left_out += [{"variant": name, "why": why} for name, why in found.left_out.items()]
        rows, figures = rows + found.rows, figures + made
        more = {"figures": [figure.to_json() for figure in figures], "left_out": left_out}
        path = write("gpu", rows, out, place, **more)  # after each part, should the process be ended
    reached = [figure.reached for figure in figures]
    missing = sum(isinstance(figure.value, str) for figure in figures)
    print(f"\n{table(rows)}\n\n{reached.count(True)} goals reached, {reached.count(False)} not; {missing} not measured")
    plot(rows, path.with_suffix(".png"))
    print(f"written: {path} and .png")


def measured(part: Part, seconds: float) -> Found:
    """What a part finds in that time; of one that fails, what it had found and why it failed."""
    found = Found()
    try:
        with time_bound(seconds):
            torch.manual_seed(0)
            part.measure(found)
    except OutOfTime:
        found.why = LATE
    except Exception as error:
        found.why = reason(error)
    gc.collect()
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found
