"""Boxes of another layout: read where the user names it, else refused with the flag that reads them."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from opensiglip.data.sources.box_layout import BoxLayout
from opensiglip.data.sources.registry import open_source, with_box_format
from opensiglip.errors import UserError

WIDTH, HEIGHT = 80, 40
CORNERS = [(8, 4, 24, 20), (40, 20, 72, 36), (2, 2, 78, 38), (60, 30, 64, 38)]  # x1, y1, x2, y2 in pixels


def written(layout: str, box: tuple[int, int, int, int]) -> list[float]:
    x1, y1, x2, y2 = box
    corners, _, unit = layout.partition("-")
    w, h = x2 - x1, y2 - y1
    numbers = {"xyxy": (x1, y1, x2, y2), "xywh": (x1, y1, w, h), "cxcywh": (x1 + w / 2, y1 + h / 2, w, h)}[corners]
    sides = (WIDTH, HEIGHT) * 2 if unit == "relative" else (1,) * 4
    return [number / side for number, side in zip(numbers, sides, strict=True)]


def folder(root: Path, column: dict[str, Any], **more: Any) -> str:
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "a.png")
    row = {"file_name": "a.png", "caption": "x", "split": "train"} | column | more
    (root / "metadata.jsonl").write_text(json.dumps(row))
    return str(root)


def regions(layout: str) -> dict[str, Any]:
    return {"regions": [{"bbox": written(layout, box), "phrase": f"box {box[0]}"} for box in CORNERS]}


@pytest.mark.parametrize("corners", ["xyxy", "xywh", "cxcywh"])
@pytest.mark.parametrize("unit", ["pixels", "relative"])
@pytest.mark.parametrize("size", [{}, {"width": WIDTH, "height": HEIGHT}])
def test_boxes_of_every_layout_become_corners_in_pixels(
    corners: str, unit: str, size: dict[str, int], tmp_path: Path
) -> None:
    layout = f"{corners}-{unit}"
    spec = folder(tmp_path, regions(layout), **size)
    (named,) = with_box_format([spec], layout)
    found = [region.bbox for region in open_source(named).example(0).regions]
    assert [pytest.approx(box) for box in CORNERS] == found
    if layout == "xyxy-pixels":
        assert [region.bbox for region in open_source(spec).example(0).regions] == found


@pytest.mark.parametrize(
    ("layout", "flag"),
    [
        ("xywh", "give --box-format xywh, or cxcywh"),
        ("cxcywh", "give --box-format xywh, or cxcywh"),
        ("xyxy-relative", "give --box-format xyxy-relative, or xyxy"),
        ("xywh-relative", "give --box-format xywh-relative or cxcywh-relative"),
    ],
)
def test_boxes_of_another_layout_are_refused_with_the_flag_that_reads_them(
    layout: str, flag: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=flag):
        open_source(folder(tmp_path, regions(layout)))
    assert len(open_source(folder(tmp_path, regions(layout)) + ":box_format=xyxy")) == 1, "as one insists"


def test_a_few_odd_boxes_among_many_are_only_counted(tmp_path: Path) -> None:
    good = regions("xyxy")["regions"] * 2
    odd = [{"bbox": [9, 9, 5, 5], "phrase": "x"}, {"bbox": [0.1, 0.1, 0.9, 0.9], "phrase": "tiny"}]
    source = open_source(folder(tmp_path, {"regions": good + odd}))
    assert source.skipped == {"region: box of no area": 1}
    assert len(source.example(0).regions) == len(good) + 1


def test_imagefolders_own_column_is_read_as_coco_writes_it(tmp_path: Path) -> None:
    boxes = [written("xywh", box) for box in CORNERS]
    objects = {"bbox": [*boxes, [1, 1, 0, 5]], "categories": ["fox", "apple", "fox", 3, "pear"], "area": [1] * 5}
    source = open_source(folder(tmp_path, {"objects": objects}))
    found = source.example(0).regions
    assert [region.bbox for region in found] == CORNERS[:3]
    assert [(region.phrases, region.n_boxes) for region in found] == [
        ({"en": "fox"}, 2),
        ({"en": "apple"}, 1),
        ({"en": "fox"}, 2),
    ]
    assert source.skipped == {"region: category is not a name": 1, "region: box of no area": 1}
    shares = {"bbox": [written("cxcywh-relative", box) for box in CORNERS], "categories": ["fox"] * 4}
    with pytest.raises(UserError, match="--box-format"):
        open_source(folder(tmp_path, {"objects": shares}))
    source = open_source(folder(tmp_path, {"objects": shares}) + ":box_format=cxcywh-relative")
    assert [pytest.approx(box) for box in CORNERS] == [region.bbox for region in source.example(0).regions]


@pytest.mark.parametrize("wrong", ["", "xyxy-", "yxyx", "xywh relative", "xywh-inches", "relative"])
def test_a_layout_that_there_is_not_is_refused(wrong: str) -> None:
    if wrong == "xyxy-":
        assert BoxLayout.parse(wrong) == BoxLayout()
        return
    with pytest.raises(
        UserError, match=f"--box-format '{wrong}' is not known; give xyxy, xywh, cxcywh, with -relative"
    ):
        BoxLayout.parse(wrong)


def test_the_flag_is_for_folders_that_name_no_layout_of_their_own(tmp_path: Path) -> None:
    own = f"{tmp_path}:box_format=xyxy"
    specs = with_box_format(["scenes", str(tmp_path), own, "pairs.json"], "xywh")
    assert specs == ["scenes", f"{tmp_path}:box_format=xywh", own, "pairs.json"]
    assert with_box_format(specs, None) == specs
