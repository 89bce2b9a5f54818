"""Boxes as text. y-first exists only in here; everywhere else a box is x1, y1, x2, y2 in pixels."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from opensiglip.data.example import Box
from opensiglip.errors import UserError

ORDERS = ("y1 x1 y2 x2", "x1 y1 x2 y2")
SEPARATORS = (" ", ",", ", ", ";", "; ")
LOC, LOC_TOP = "loc", 1023  # PaliGemma's vocabulary: <loc0000> to <loc1023>

Point = tuple[float, float]  # x, y in pixels


@dataclass(frozen=True)
class BoxFormat:
    """How LocCa's decoder writes a box: four integers 0..`top` of the image's side, in `order`, `separator` between.

    The range is recalled and the order not established for LocCa; PaliGemma, of the same group, is y-first (recipes.md
    3.1, 14). So all three are our choices, and one setting: the four names as they are to be written, then ":TOP" for
    another range than 500: "y1 x1 y2 x2", "x1,y1,x2,y2:1000". Or "loc": each number is a token of its own, y first,
    as PaliGemma has it (big_vision pp/proj/paligemma/segmentation.py:41-77).
    """

    order: str = ORDERS[0]
    top: int = 500
    separator: str = " "
    loc: bool = False

    @classmethod
    def parse(cls, text: str) -> "BoxFormat":
        """From "y1 x1 y2 x2", "x1, y1, x2, y2:1000" or "loc". Raises UserError."""
        if text == LOC:
            return cls(ORDERS[0], LOC_TOP, "", loc=True)
        names, colon, top = text.partition(":")
        found = [
            cls(order, separator=separator)
            for order in ORDERS
            for separator in SEPARATORS
            if names == separator.join(order.split())
        ]
        if not found or (colon and not (top.isascii() and top.isdigit() and 0 < int(top) < 100_000)):
            raise UserError(
                f"--boxes {text!r} is not a box format; give 'y1 x1 y2 x2' or 'x1 y1 x2 y2', "
                "separated by spaces, commas or semicolons, with :TOP for another range than 500; or loc."
            )
        return cls(found[0].order, int(top or 500), found[0].separator)

    def __str__(self) -> str:
        return LOC if self.loc else f"{self.separator.join(self.order.split())}:{self.top}"

    def mark(self, number: int) -> str:
        """One number as text."""
        return f"<loc{number:04d}>" if self.loc else str(number)

    def tokens(self) -> list[str]:
        """What the tokenizer must have as one token each, whatever it splits otherwise."""
        return [self.mark(number) for number in range(self.top + 1)] if self.loc else []

    def numbers(self, box: Box, width: float, height: float) -> list[int]:
        """The four integers, in the text's order: the nearest of `top` + 1 marks, and one apart at least.

        So that every box that is written can be read: one narrower than a mark is a mark wide.
        """
        x1, x2 = self._apart(self._mark(box[0], width), self._mark(box[2], width))
        y1, y2 = self._apart(self._mark(box[1], height), self._mark(box[3], height))
        place = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
        return [place[name] for name in self.order.split()]

    def _mark(self, place: float, side: float) -> int:
        return min(max(round(self.top * place / side), 0), self.top)

    def _apart(self, low: int, high: int) -> tuple[int, int]:
        return (low, high) if low < high else (low, low + 1) if low < self.top else (low - 1, low)

    def write(self, box: Box, width: float, height: float) -> str:
        """The text of a box in an image of that size."""
        return self.separator.join(map(self.mark, self.numbers(box, width, height)))

    def write_points(self, points: Sequence[Point], width: float, height: float) -> str:
        """The text of points x, y: their marks one after the other, y first where the order is."""
        axes = [name[0] for name in self.order.split()[:2]]
        pairs = [{"x": self._mark(x, width), "y": self._mark(y, height)} for x, y in points]
        return self.separator.join(self.mark(pair[axis]) for pair in pairs for axis in axes)

    def read(self, text: str, width: float, height: float) -> Box | None:
        """The box a text begins with; None unless it is four integers in range that make a box of some area."""
        taken = self.take(text, width, height)
        return taken[0] if taken else None

    def read_points(self, text: str, width: float, height: float) -> tuple[Point, ...]:
        """The points whose marks a text consists of; none where it is anything else."""
        number = self._number()
        marks = [int(mark) for mark in re.findall(number, text, re.ASCII)]
        rest = re.sub(number, "", text, flags=re.ASCII).replace(self.separator.strip() or " ", "")
        if rest.strip() or len(marks) % 2 or any(mark > self.top for mark in marks):
            return ()
        side = {"x": width, "y": height}
        axes = [name[0] for name in self.order.split()[:2]]
        places = [
            {axis: mark * side[axis] / self.top for axis, mark in zip(axes, marks[at : at + 2], strict=True)}
            for at in range(0, len(marks), 2)
        ]
        return tuple((place["x"], place["y"]) for place in places)

    def take(self, text: str, width: float, height: float) -> tuple[Box, str] | None:
        """The box a text begins with, and what follows it; None as `read` says."""
        between = rf"\s*{mark}\s*" if (mark := self.separator.strip()) else r"\s*" if self.loc else " "
        match = re.match(rf"\s*{between.join([self._number()] * 4)}(?!\d)", text, re.ASCII)
        if match is None:
            return None
        side = {"x": width, "y": height}
        values = [int(group) for group in match.groups()]
        place = {name: value * side[name[0]] / self.top for name, value in zip(self.order.split(), values, strict=True)}
        box = (place["x1"], place["y1"], place["x2"], place["y2"])
        well_formed = max(values) <= self.top and box[0] < box[2] and box[1] < box[3]
        return (box, text[match.end() :]) if well_formed else None

    def _number(self) -> str:
        return r"<loc(\d{4})>" if self.loc else r"(\d{1,5})"
