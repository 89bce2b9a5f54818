"""Boxes as text: nothing lost but half a mark, nothing read that is no box, y-first nowhere outside."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from opensiglip.data.boxes import ORDERS, SEPARATORS, BoxFormat
from opensiglip.errors import UserError

formats = st.builds(
    BoxFormat, st.sampled_from(ORDERS), st.sampled_from([63, 500, 1000, 1023]), st.sampled_from(SEPARATORS)
)
shares = st.floats(0, 1)
sides = st.integers(1, 4000)


@settings(deadline=None)
@given(formats, shares, shares, shares, shares, sides, sides)
def test_a_box_comes_back_within_half_a_mark(
    boxes: BoxFormat, a: float, b: float, c: float, d: float, width: int, height: int
) -> None:
    (left, right), (top, bottom) = sorted((a, b)), sorted((c, d))
    assume(right - left > 1.01 / boxes.top and bottom - top > 1.01 / boxes.top)  # a thinner one is made a mark wide
    box = (left * width, top * height, right * width, bottom * height)
    back = boxes.read(boxes.write(box, width, height), width, height)
    assert back is not None
    for before, after, side in zip(box, back, (width, height, width, height), strict=True):
        assert abs(before - after) <= side * (0.5 / boxes.top + 1e-9)


@settings(deadline=None)
@given(formats, shares, shares, st.floats(0, 2e-4), st.floats(0, 2e-4), sides, sides)
def test_a_box_thinner_than_a_mark_is_written_as_one_that_can_be_read(
    boxes: BoxFormat, left: float, top: float, across: float, down: float, width: int, height: int
) -> None:
    box = (left * width, top * height, (left + across) * width, (top + down) * height)
    back = boxes.read(boxes.write(box, width, height), width, height)
    assert back is not None, "no text is taught that our own reader refuses"
    for before, after, side in zip(box, back, (width, height, width, height), strict=True):
        assert abs(before - after) <= side * (1.5 / boxes.top + 1e-9)


def test_points_stay_where_they_are_however_close() -> None:
    boxes = BoxFormat("y1 x1 y2 x2", 500)
    assert boxes.write_points([(0, 0), (10, 0), (10, 10)], 100, 50) == "0 0 0 50 100 50"


@settings(deadline=None)
@given(formats, st.tuples(*[st.floats(-1e4, 1e4)] * 4), sides, sides)
def test_any_box_becomes_four_integers_in_range(
    boxes: BoxFormat, box: tuple[float, float, float, float], width: int, height: int
) -> None:
    numbers = boxes.numbers(box, width, height)
    assert len(numbers) == 4 and all(0 <= number <= boxes.top for number in numbers)
    assert boxes.write(box, width, height) == boxes.separator.join(map(str, numbers))


@settings(deadline=None)
@given(formats, st.text(max_size=30) | st.from_regex(r"\s?(\d{1,5}[ ,;]{1,2}){4}.{0,3}", fullmatch=True))
def test_what_is_read_is_a_box_inside_the_image(boxes: BoxFormat, text: str) -> None:
    box = boxes.read(text, 30, 20)
    if box is not None:
        assert 0 <= box[0] < box[2] <= 30 and 0 <= box[1] < box[3] <= 20


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1 2 3",  # too few
        "1 2 3 501",  # beyond the range
        "1 2 3 50000000",
        "3 2 1 4",  # no area, first side
        "1 4 3 4",  # no area, second side
        "1 2 -3 4",
        "1.5 2 3 4",
        "1,2,3,4",
        "1  2 3 4",
        "a 1 2 3 4",
        "١ ٢ ٣ ٤",  # digits, but not those that we write
    ],
)
@pytest.mark.parametrize("order", ORDERS)
def test_a_text_that_is_no_box_is_none(order: str, text: str) -> None:
    assert BoxFormat(order).read(text, 10, 10) is None


def test_only_the_text_is_y_first() -> None:
    assert str(BoxFormat()) == "y1 x1 y2 x2:500"
    box = (10.0, 20.0, 40.0, 80.0)
    assert BoxFormat("y1 x1 y2 x2", 100).write(box, 100, 200) == "10 10 40 40"
    assert BoxFormat("x1 y1 x2 y2", 100).write(box, 100, 200) == "10 10 40 40"
    assert BoxFormat("y1 x1 y2 x2", 100).write(box, 100, 100) == "20 10 80 40"
    assert BoxFormat("x1 y1 x2 y2", 100).write(box, 100, 100) == "10 20 40 80"
    assert BoxFormat("y1 x1 y2 x2", 100).read(" 20 10 80 40 and more", 100, 100) == box
    assert BoxFormat("x1 y1 x2 y2", 100).read("10 20 40 80", 100, 100) == box


@settings(deadline=None)
@given(formats)
def test_a_format_is_its_text(boxes: BoxFormat) -> None:
    assert BoxFormat.parse(str(boxes)) == boxes


@pytest.mark.parametrize(
    "text", ["", "y1 x1 x2 y2", "y1 x1 y2 x2:0", "y1 x1 y2 x2:-5", "x1 y1 x2 y2:1e3", "x1 y1 x2 y2:²"]
)
def test_an_unknown_format_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(UserError, match="--boxes"):
        BoxFormat.parse(text)
