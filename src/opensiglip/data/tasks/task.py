"""A task as text: from an example to what is asked and answered, and from an answer's text back to what it means."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from opensiglip.data.boxes import BoxFormat, Point
from opensiglip.data.example import Box
from opensiglip.data.fields.field import Visit

Draw = Callable[[], float]  # the next random number, uniform in [0, 1)


class Polygon(NamedTuple):
    """The corners of an outline, x, y in pixels."""

    points: tuple[Point, ...]


Part = str | Box | Polygon  # of a text: words, or a place that is written in the run's box format


@dataclass(frozen=True)
class TaskText:
    """One question and its answer, in parts: `prefix` is visible and carries no loss, `target` carries it.

    Where the target repeats what is asked (LocCa's "phrase : box"), its first `given` parts are given in evaluation.
    `truth` is what the target means, in pixels of the visit's image; for captions, all that would be right.
    """

    prefix: tuple[Part, ...]
    target: tuple[Part, ...]
    truth: Any
    given: int = 0


class Form(NamedTuple):
    """How places are written, and on an image of which size."""

    boxes: BoxFormat
    width: float
    height: float

    def write(self, part: Part) -> str:
        """A part as text."""
        if isinstance(part, str):
            return part
        if isinstance(part, Polygon):
            return self.boxes.write_points(part.points, self.width, self.height)
        return self.boxes.write(part, self.width, self.height)


@dataclass(frozen=True)
class Task:
    """A pair of functions, and how its answers are judged.

    ask: what to say of a visit, None where it has nothing to say; makes its choices with the numbers that it draws.
    read: what an answer's text means; None where it means nothing.
    measure: "caption", "exact", "words", "box", "boxes" or "mask", see evaluation/benchmarks/text_tasks.py.
    words: what stands in every sequence, to be one token each where the tokenizer is made for the run.
    places: does it write boxes or outlines? cut: may a target that is too long lose its end?
    prefix, given: how a question of it is spelled, in the parts of `TaskText`; words in capitals are
        filled in by the question.
    """

    name: str
    ask: Callable[[Visit, Draw], TaskText | None]
    read: Callable[[str, Form], Any]
    measure: str
    words: str = ""
    places: bool = False
    cut: bool = False
    prefix: tuple[str, ...] = ("QUESTION",)
    given: tuple[str, ...] = ()


def plain(text: str, form: Form) -> str:
    """The answer of a task whose answers are words."""
    return text


def language_of(visit: Visit) -> str | None:
    """The language that this visit speaks; None without a caption."""
    return visit.caption.language if visit.caption else None


def in_language(texts: dict[str, str], language: str | None) -> str:
    """The text in that language, else in the first there is."""
    return texts.get(language or "") or next(iter(texts.values()))
