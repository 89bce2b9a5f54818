"""Answers of a model: a box with its score, or a task's text with its parsed value."""

from dataclasses import dataclass
from typing import Any

from opensiglip.data.boxes import Point
from opensiglip.data.example import Box
from opensiglip.data.tasks import Polygon


@dataclass(frozen=True)
class Found:
    """A phrase and its box; `score` in 0..1: how many of the boxes that were drawn agree with it.

    Of a box that `Decoding` chose, the geometric mean of the probabilities of its tokens.
    """

    phrase: str
    box: Box
    score: float

    def as_json(self) -> dict[str, Any]:
        """The fields, the box as a list."""
        return {"phrase": self.phrase, "box": rounded(self.box), "score": round(self.score, 4)}


@dataclass(frozen=True)
class Answer:
    """The decoder's text and its parsed value.

    `value` is a box, a list of (name, box), a `Polygon` or a text, depending on the task, with coordinates in pixels of
    the image; None if the text could not be parsed.
    """

    text: str
    value: Any

    @property
    def boxes(self) -> list[tuple[str, Box]]:
        """The boxes of the value; a single box has no name."""
        if isinstance(self.value, list):
            return self.value
        return [("", self.value)] if isinstance(self.value, tuple) and not self.outline else []

    @property
    def outline(self) -> tuple[Point, ...]:
        """The corners of the value if it is a polygon."""
        return self.value.points if isinstance(self.value, Polygon) else ()

    def as_json(self) -> dict[str, Any]:
        """The text and the value as JSON: a polygon as its corners, boxes as lists."""
        return {"text": self.text, "value": rounded(self.outline or self.value)}


def rounded(value: Any) -> Any:
    """The value for JSON, with pixels to two decimals."""
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    return round(value, 2) if isinstance(value, float) else value
