"""Every task by name, and `judge`: several of them on one model and one set of examples."""

from collections.abc import Sequence
from typing import Any

from opensiglip.errors import UserError
from opensiglip.evaluate.base import Context, Findings, Impossible, Task
from opensiglip.evaluate.grounding import grounding
from opensiglip.evaluate.judged import Judged
from opensiglip.evaluate.retrieval import retrieval
from opensiglip.evaluate.subject import Subject

TASKS: dict[str, Task] = {
    "retrieval": retrieval,
    "grounding": grounding,
}


def judge(
    subject: Subject, judged: Judged, tasks: Sequence[str], context: Context
) -> tuple[dict[str, Findings], dict[str, str]]:
    """Findings by task, and by task why it was left out."""
    found: dict[str, Findings] = {}
    left_out: dict[str, str] = {}
    for name in tasks:
        if name not in TASKS:
            raise UserError(f"--tasks {name!r} is unknown; there are {', '.join(TASKS)}.")
        try:
            found[name] = TASKS[name](subject, judged, context)
        except Impossible as reason:
            left_out[name] = str(reason)
    return found, left_out
