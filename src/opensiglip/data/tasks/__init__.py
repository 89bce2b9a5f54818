"""Tasks as text, by name: PaLI's unified interface. A user's own is FILE.py:NAME (docs/how-to/add-a-task.md)."""

from functools import cache

from opensiglip.data.tasks.places import PLACES
from opensiglip.data.tasks.question import Question, parse_question, spelled
from opensiglip.data.tasks.task import Draw, Form, Polygon, Task, TaskText, plain
from opensiglip.data.tasks.texts import TEXTS
from opensiglip.errors import UserError
from opensiglip.user_file import load

TASKS: dict[str, Task] = {task.name: task for task in (*TEXTS, *PLACES)}

__all__ = [
    "TASKS",
    "TaskText",
    "Draw",
    "Form",
    "Polygon",
    "Question",
    "Task",
    "find_task",
    "parse_question",
    "parse_tasks",
    "plain",
    "spelled",
]


@cache
def find_task(name: str) -> Task:
    """The task of that name, or FILE.py:NAME of the user's own. Raises UserError."""
    if name in TASKS:
        return TASKS[name]
    file, _, own = name.rpartition(":")
    if file.endswith(".py"):
        task = load("task", file, own)
        if not isinstance(task, Task):
            raise UserError(f"{file} has no task {own!r}; name a `Task` that it makes.")
        return task
    raise UserError(f"--tasks: no such task: {name!r}; tasks are {', '.join(TASKS)}, or FILE.py:NAME.")


def parse_tasks(text: str) -> dict[str, float]:
    """From "caption:4,aref:2,detect": each task's name and weight, 1 where none is given. Raises UserError."""
    weights: dict[str, float] = {}
    for item in text.split(","):
        name, _, tail = item.strip().rpartition(":")
        try:
            weight = float(tail) if name else 1.0
        except ValueError:  # the colon belongs to FILE.py:NAME
            name, weight = item.strip(), 1.0
        name = name or tail
        if not 0 < weight < float("inf"):
            raise UserError(f"--tasks: the weight of {name} is {tail}; give a number above 0.")
        if name in weights:
            raise UserError(f"--tasks: {name} is given twice; keep one.")
        find_task(name)
        weights[name] = weight
    return weights
