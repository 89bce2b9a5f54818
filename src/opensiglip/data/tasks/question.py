"""A question as a person types it, taken apart as training laid it out: "ARef: a fox :", "detect fox ; apple"."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from opensiglip.data.tasks.task import Form, Part, Task
from opensiglip.errors import UserError

SLOT = re.compile(r"\b[A-Z]{3,}\b")  # in how a task is spelled: what a question of it fills in


class Question(NamedTuple):
    """What is asked, and what is given of the answer (LocCa's "phrase :"), in the parts of `TaskText`."""

    task: Task
    prefix: tuple[Part, ...]
    given: tuple[Part, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Is all given of the answer that the task gives, so that what follows can be read?"""
        return bool(self.given) or not self.task.given


def parse_question(text: str, tasks: Sequence[Task], form: Form) -> Question:
    """The question that `text` puts to one of the tasks; what is given of the answer may be left out.

    Raises UserError on a text that is a question of none of them, or that names a box which is none.
    """
    words = " ".join(text.split())
    for task in tasks:
        for given in (task.given, ()):
            spelling = (*task.prefix, *given)
            match = re.fullmatch(pattern(spelling), words, re.IGNORECASE)
            if match is None:
                continue
            filled = [fill(part, said, form) for part, said in zip(spelling, match.groups(), strict=True)]
            prefix, rest = filled[: len(task.prefix)], filled[len(task.prefix) :]
            return Question(task, sum(prefix, ()), sum(rest, ()))
    known = ", ".join(f'"{spelled(task)}"' for task in tasks)
    raise UserError(f"{text!r} asks for no task of this model; it was trained on {known or 'none'}.")


def spelled(task: Task) -> str:
    """How a question of the task is typed, in capitals what is to be filled in."""
    return " ".join((*task.prefix, *task.given))


def pattern(spelling: Sequence[str]) -> str:
    """The regular expression of a question, a group a part."""
    groups = [
        "(" + SLOT.sub(lambda slot: r"\S+" if slot[0] == "LANGUAGE" else ".+", re.escape(part)) + ")"
        for part in spelling
    ]
    return " ".join(groups).replace(" (:)", " ?(:)")


def fill(part: str, said: str, form: Form) -> tuple[Part, ...]:
    """The parts that were `said` where the task has `part`. Raises UserError on a box that is none."""
    said = said.strip()
    if part == "BOX":
        if (box := form.boxes.read(said, form.width, form.height)) is None:
            raise UserError(f"{said!r} is not a box in this model's format: {form.boxes}.")
        return (box,)
    if part == "NAMES":
        return tuple(name.strip() for name in re.split("(;)", said) if name.strip())
    return (said if SLOT.search(part) else part,)
