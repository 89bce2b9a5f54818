"""A plan as text."""

from collections.abc import Iterable, Sequence
from dataclasses import fields

from opensiglip.training.planning.plan import SECONDS_A_DAY, Plan, Stage, gib
from opensiglip.training.planning.step import Memory

GIGA = 1e9
PARTS = {  # of memory, in words
    "weights": "weights",
    "teacher": "EMA teacher",
    "moments": "state of the optimizer",
    "gradients": "gradients",
    "activations": "activations",
    "losses": "logits and slopes of the losses",
    "batch": "batch",
    "buckets": "gradient buckets",
    "allocator": "allocator and context",
}


def parameters_text(plan: Plan) -> str:
    """Parameters by network."""
    named = ", ".join(f"{name} {number / 1e6:.2f} M" for name, number in plan.parameters.items())
    return f"parameters  {named}"


def memory_text(plan: Plan, others: Sequence[tuple[str, Memory]]) -> str:
    """Memory of a rank by part, in the stage that holds most; beside it, what other settings would hold."""
    columns = [("here", plan.memory), *others]
    rows = [["GiB a rank, at the fullest moment", *(name for name, _ in columns)]]
    for part in fields(Memory):
        sizes = [getattr(memory, part.name) for _, memory in columns]
        if part.name in PARTS and any(sizes):
            rows.append([PARTS[part.name], *(f"{value / 2**30:.2f}" for value in sizes)])
    rows.append(["total", *(f"{memory.total / 2**30:.2f}" for _, memory in columns)])
    rows.append(["all gradients (held at the end)", *(f"{m.all_gradients / 2**30:.2f}" for _, m in columns)])
    return table(rows)


def flops_text(stage: Stage) -> str:
    """GFLOP of an example by part, forward and backward; a row for each view that a tower is shown."""
    forward, backward = stage.flops()
    rows = [
        [f"GFLOP an example, {stage.begin:.0%} to {stage.end:.0%} of training ({stage.read})", "forward", "backward"]
    ]
    for part in sorted({*forward, *backward}, key=lambda part: -(forward[part] + backward[part])):
        rows.append([part, f"{forward[part] / GIGA:.3f}", f"{backward[part] / GIGA:.3f}"])
    rows.append(["total", f"{forward.total() / GIGA:.3f}", f"{backward.total() / GIGA:.3f}"])
    return table(rows)


def traffic_text(plan: Plan) -> str:
    """Bytes that a rank sends in a step."""
    sent = plan.traffic
    how = "weights gathered twice, gradients scattered" if plan.setting.shard else "gradients averaged"
    lines = [f"sent a step and rank: {megabytes(sent.gradients)} ({how})"]
    if sent.gather:
        lines.append(
            f"  pairwise losses: {megabytes(sent.ring)} by ring, as here; {megabytes(sent.gather)} if all were gathered"
        )
    return "\n".join(lines)


def time_text(plan: Plan, rate: float, utilisation: float, examples: float | None) -> str:
    """Images a second, and what the examples take."""
    lines = [f"speed       {rate:.4g} images/s at {utilisation:.0%} of the peak, {plan.flops / GIGA:.1f} GFLOP each"]
    if examples is not None:
        days = examples / rate / SECONDS_A_DAY
        lines.append(
            f"time        {examples:.4g} examples in {days:.3g} days: {days * 24 * plan.setting.ranks:.4g} GPU-hours"
        )
    return "\n".join(lines)


def fits_text(need: int, room: int, changes: Iterable[str]) -> str:
    """Whether it fits, and what to change where it does not."""
    if need <= room:
        return f"fits        {gib(need)} of {gib(room)} a rank"
    way = " or ".join(changes) or "a smaller --size or --resolution, more ranks, or --shard"
    return f"too large   {gib(need)} of {gib(room)} a rank; it fits with {way}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def megabytes(size: int) -> str:
    return f"{size / 1e6:.4g} MB"
