"""Boxes as text. y-first exists only in here; everywhere else a box is x1, y1, x2, y2 in pixels."""

import re
from dataclasses import dataclass

from opensiglip.data.example import Box
from opensiglip.errors import UserError

ORDERS = ("y1 x1 y2 x2", "x1 y1 x2 y2")
SEPARATORS = (" ", ",", ", ", ";", "; ")


@dataclass(frozen=True)
class BoxFormat:
    """How LocCa's decoder writes a box: four integers 0..`top` of the image's side, in `order`, `separator` between.

    The range is recalled and the order not established for LocCa; PaliGemma, of the same group, is y-first (recipes.md
    3.1, 14). So all three are our choices, and one setting: the four names as they are to be written, then ":TOP" for
    another range than 500: "y1 x1 y2 x2", "x1,y1,x2,y2:1000".
    """

    order: str = ORDERS[0]
    top: int = 500
    separator: str = " "

    @classmethod
    def parse(cls, text: str) -> "BoxFormat":
        """From "y1 x1 y2 x2" or "x1, y1, x2, y2:1000". Raises UserError."""
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
                "with spaces, commas or semicolons between, and :TOP after it for another range than 500."
            )
        return cls(found[0].order, int(top or 500), found[0].separator)

    def __str__(self) -> str:
        return f"{self.separator.join(self.order.split())}:{self.top}"

    def numbers(self, box: Box, width: float, height: float) -> list[int]:
        """The four integers, in the text's order: the nearest of `top` + 1 marks."""
        place = dict(zip(("x1", "y1", "x2", "y2"), box, strict=True))
        side = {"x": width, "y": height}
        marks = [round(self.top * place[name] / side[name[0]]) for name in self.order.split()]
        return [min(max(mark, 0), self.top) for mark in marks]

    def write(self, box: Box, width: float, height: float) -> str:
        """The text of a box in an image of that size."""
        return self.separator.join(map(str, self.numbers(box, width, height)))

    def read(self, text: str, width: float, height: float) -> Box | None:
        """The box a text begins with; None unless it is four integers in range that make a box of some area."""
        between = rf"\s*{mark}\s*" if (mark := self.separator.strip()) else " "
        number = r"(\d{1,5})"
        match = re.match(rf"\s*{between.join([number] * 4)}(?!\d)", text, re.ASCII)
        if match is None:
            return None
        side = {"x": width, "y": height}
        values = [int(group) for group in match.groups()]
        place = {name: value * side[name[0]] / self.top for name, value in zip(self.order.split(), values, strict=True)}
        box = (place["x1"], place["y1"], place["x2"], place["y2"])
        well_formed = max(values) <= self.top and box[0] < box[2] and box[1] < box[3]
        return box if well_formed else None
