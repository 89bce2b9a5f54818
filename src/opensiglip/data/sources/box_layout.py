"""How a source writes its boxes: corners or a corner and sides, in pixels or in shares of the image."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from opensiglip.data.example import Box, BrokenExample
from opensiglip.data.sources.values import is_number
from opensiglip.errors import UserError

CORNERS, UNITS = ("xyxy", "xywh", "cxcywh"), ("pixels", "relative")
MOST_SMALL, MOST_EMPTY = 0.5, 0.25  # shares of a source's boxes from which on they are not what they are read as


@dataclass(frozen=True)
class BoxLayout:
    """`corners`: x1 y1 x2 y2, x y width height (COCO), or centre x y width height (YOLO); `relative`: sides are 1."""

    corners: str = "xyxy"
    relative: bool = False

    @classmethod
    def parse(cls, text: str) -> "BoxLayout":
        """From "xywh", "xyxy-relative", "cxcywh-pixels". Raises UserError."""
        corners, _, unit = text.partition("-")
        if corners not in CORNERS or unit not in ("", *UNITS):
            raise UserError(
                f"--box-format {text!r} is not known; give {', '.join(CORNERS)}, with -relative for fractions of "
                "the image in place of pixels."
            )
        return cls(corners, unit == "relative")

    def read(self, value: Any) -> Box:
        """Four numbers as corners x1, y1, x2, y2, in the layout's own unit. Raises BrokenExample."""
        if not is_box(value):
            raise BrokenExample("bbox is not four finite numbers")
        left, top, right, bottom = (float(edge) for edge in value)
        if self.corners == "xywh":
            right, bottom = left + right, top + bottom
        elif self.corners == "cxcywh":
            width, height = right, bottom
            left, top, right, bottom = left - width / 2, top - height / 2, left + width / 2, top + height / 2
        if not (left < right and top < bottom):
            raise BrokenExample("box of no area")
        return left, top, right, bottom

    def fit(self, box: Sequence[float], width: float, height: float) -> Box:
        """A box that `read` gave, in pixels of an image of that size. Raises BrokenExample where it lies outside."""
        if not self.relative:
            return fit_box(box, width, height)
        left, top, right, bottom = box
        return fit_box((left * width, top * height, right * width, bottom * height), width, height)


def is_box(value: Any) -> bool:
    """Is it a list of four finite numbers?"""
    return isinstance(value, list) and len(value) == 4 and all(is_number(edge) for edge in value)


def fit_box(box: Sequence[float], width: float, height: float) -> Box:
    """The box cut to an image of width x height pixels, which it may leave by a pixel or by 1 % of the side.

    That much is rounding; a box further out belongs to another image or unit. Raises BrokenExample for those.
    """
    left, top, right, bottom = box
    beside, above = max(1.0, width / 100), max(1.0, height / 100)
    inside = left >= -beside and top >= -above and right <= width + beside and bottom <= height + above
    left, top, right, bottom = max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height)
    if not (inside and left < right and top < bottom):
        raise BrokenExample("box outside the image")
    return left, top, right, bottom


def box_facts(values: Sequence[Any], *, corners: bool) -> Counter[str]:
    """What tells boxes of another layout: how many there are, are between 0 and 1, and are empty as `corners`."""
    boxes = [value for value in values if is_box(value)]
    small = [min(box) >= 0 and max(box) <= 1 for box in boxes]
    empty = [box[2] <= box[0] or box[3] <= box[1] for box in boxes]
    return Counter(
        boxes=len(boxes),
        small=sum(small),
        small_empty=sum(map(all, zip(small, empty, strict=True))),
        empty=sum(empty) if corners else 0,
    )


def check_layout(facts: Counter[str], source: str) -> None:
    """Refuse boxes that are not corners in pixels, with the flag that reads them. Raises UserError."""
    count, small, empty = facts["boxes"], facts["small"], facts["empty"]
    if small > MOST_SMALL * count:
        layout = "xywh-relative or cxcywh-relative" if facts["small_empty"] > MOST_EMPTY * small else "xyxy-relative"
        raise UserError(
            f"{small} of {count} boxes of {source} lie between 0 and 1, like fractions of the image; give --box-format "
            f"{layout}, or xyxy if they are pixels."
        )
    if empty > MOST_EMPTY * count:
        raise UserError(
            f"{empty} of {count} boxes of {source} have no area as x1 y1 x2 y2; give --box-format xywh, or cxcywh if "
            "they start with their centre, or xyxy to leave those out."
        )
