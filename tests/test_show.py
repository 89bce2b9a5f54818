"""The summary, the contact sheet, and the boxes drawn on it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from opensiglip.data.example import Caption, Example, Region
from opensiglip.data.sources.folder import Folder
from opensiglip.errors import UserError
from opensiglip.reports.contact_sheet import CELL, MARGIN, contact_sheet, draw_cell, show, summarize
from opensiglip.reports.drawing import can_draw, caption_strip, draw_boxes, fit, font


def write(root: Path, count: int = 3, *, broken: int = 0) -> str:
    root.mkdir(exist_ok=True)
    regions = [
        {"bbox": [0, 0, 20, 30], "phrase": "the left half"},
        {"bbox": [0, 0, 4, 3], "phrase": "two corners", "n_boxes": 2},
        {"bbox": [36, 27, 40, 30], "phrase": "two corners", "n_boxes": 2},
    ]
    lines = []
    for i in range(count):
        Image.new("RGB", (40, 30), "white").save(root / f"{i}.png")
        captions = ["a white picture", "a", "nothing is in this one"]
        i18n = [{"lang": "ja", "text": "白い絵"}]
        row = {"file_name": f"{i}.png", "captions": captions, "captions_i18n": i18n, "regions": regions}
        lines.append(json.dumps(row | {"split": "train"}))
    for i in range(broken):
        (root / f"{i}.png").write_bytes(b"no image")
    (root / "metadata.jsonl").write_text("\n".join(lines))
    return str(root)


def test_the_summary_counts_what_is_there(tmp_path: Path) -> None:
    lines = summarize(Folder(write(tmp_path, 4, broken=1))).splitlines()
    assert "images: 4" in lines
    assert "captions: en 12, ja 4" in lines
    assert "single box regions: 4" in lines
    assert "measured on 3 examples (smallest, median, largest)" in lines
    assert "image sides in pixels: 30, 35, 40" in lines
    assert "words in a caption, en: 1, 3, 5" in lines
    assert "letters in a caption, ja: 3, 3, 3" in lines
    assert "regions on an image: 3, 3, 3" in lines
    assert "boxes by % of the image: under 1: 0 %, 1 to 5: 67 %, 5 to 20: 0 %, 20 to 50: 0 %, over 50: 33 %" in lines
    assert "broken images: image can't be decoded 1" in lines


def test_show_writes_the_contact_sheet_only_where_told(tmp_path: Path) -> None:
    spec, out = write(tmp_path / "data"), tmp_path / "new" / "sheet.png"
    before = sorted(tmp_path.rglob("*"))
    assert "contact sheet" not in show(spec)
    assert sorted(tmp_path.rglob("*")) == before
    assert show(spec, out, languages=["ja"]).endswith(f"contact sheet: {out}")
    with Image.open(out) as sheet:
        assert sheet.format == "PNG" and sheet.width == 4 * (CELL + 2 * MARGIN)


def test_a_sheet_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    spec = write(tmp_path / "data")
    with pytest.raises(UserError, match="should end in .png"):
        show(spec, tmp_path / "sheet.jpg")
    with pytest.raises(UserError, match=r"--out .*sheet.png can't be written \(.*\); name another place"):
        show(spec, tmp_path / "data" / "0.png" / "sheet.png")
    with pytest.raises(UserError, match="no image of .* can be decoded"):
        contact_sheet(Folder(write(tmp_path / "broken", 2, broken=2)))


def test_a_cell_names_a_phrase_once_and_shows_the_first_english_caption() -> None:
    image = torch.full((3, CELL, CELL), 255, dtype=torch.uint8)
    boxes = [(10.0, 10.0, 90.0, 90.0), (110.0, 110.0, 290.0, 290.0)]
    regions = tuple(Region(box, {"ja": "犬", "en": "a dog"}, 2) for box in boxes)
    captions = (Caption("白い絵", "ja"), Caption("a white picture"), Caption("nothing"))
    cell = np.asarray(draw_cell(Example(image, captions, regions)))
    corners = [cell[MARGIN + int(top) + 4, MARGIN + int(left) + 4] for left, top, *_ in boxes]
    assert (corners[0] != 255).any() and (corners[1] == 255).all()
    assert np.array_equal(cell, draw_cell(Example(image, captions[1:2], regions)))


def test_boxes_are_drawn_where_they_are_in_their_colours() -> None:
    image = torch.full((3, 100, 200), 255, dtype=torch.uint8)
    boxes = [(20.0, 30.0, 90.0, 80.0), (120.0, 30.0, 180.0, 80.0)]
    drawn = np.asarray(draw_boxes(image, boxes, ["", ""], ["#ff0000", "#0000ff"]))
    assert image.eq(255).all()  # the example's own image is left alone
    for (left, top, right, bottom), color in zip(boxes, ([255, 0, 0], [0, 0, 255]), strict=True):
        rows, columns = np.nonzero((drawn == color).all(-1))
        assert (columns.min(), rows.min(), columns.max(), rows.max()) == (left, top, right, bottom)
        assert (drawn[50, int(left) + 10] == 255).all()  # an outline, not a patch


def test_a_label_stays_on_the_image_however_long_it_is() -> None:
    image = torch.full((3, 100, 100), 255, dtype=torch.uint8)
    drawn = np.asarray(draw_boxes(image, [(90.0, 95.0, 99.0, 99.0)], ["a label " * 100], ["#ff0000"]))
    rows, columns = np.nonzero((drawn == [255, 0, 0]).all(-1))
    assert columns.min() < 20 and rows.min() < 92  # moved left and up to be read


@pytest.mark.parametrize("text", ["", " ", "one\ntwo", "x" * 100_000, "many words " * 10_000])
def test_any_caption_fits_its_strip(text: str) -> None:
    strip = caption_strip(text, 150, size=12, lines=2)
    assert strip.size == (150, 32)
    assert bool((np.asarray(strip) < 128).any()) == bool(text.strip())
    assert font(12).getlength(fit(text, 12, 150)) <= 150


def test_the_font_knows_which_letters_it_has() -> None:
    assert can_draw("Ein Mädchen, девочка, فتاة …") and not can_draw("女の子")
