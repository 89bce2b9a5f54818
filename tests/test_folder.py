"""The folder source: what it reads, what it refuses, and that a bad line costs only itself."""

import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from opensiglip.data.example import BrokenExample, Caption, Region
from opensiglip.data.sources import folder as folder_module
from opensiglip.data.sources import images as images_module
from opensiglip.data.sources import metadata as rows_module
from opensiglip.data.sources.folder import Folder, to_columns
from opensiglip.data.sources.images import read_image
from opensiglip.data.sources.metadata import parse_row
from opensiglip.data.sources.registry import open_source
from opensiglip.errors import UserError

WIDTH, HEIGHT = 40, 30


def picture(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Left half red, right half blue: tells which way up it is."""
    image = Image.new("RGB", (width, height), "red")
    image.paste("blue", (width // 2, 0, width, height))
    return image


def write(root: Path, rows: list[Any], *, images: bool = True) -> str:
    """A folder of these rows (a str or bytes is a raw line), with an image for each well-formed file name."""
    lines = [
        row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode() for row in rows
    ]
    root.mkdir(parents=True, exist_ok=True)
    (root / "metadata.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    for row in rows if images else []:
        if isinstance(row, dict):
            path = root / row["file_name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            picture().save(path)
    return str(root)


def good(count: int, **columns: Any) -> list[dict[str, Any]]:
    return [
        {"file_name": f"images/{i}.png", "captions": [f"picture {i}"], "split": "train", **columns}
        for i in range(count)
    ]


def test_captions_of_every_column_come_in_the_rows_order_each_once(tmp_path: Path) -> None:
    row = {
        "file_name": "a.png",
        "captions": ["a dog", " a cat ", "a dog", " "],
        "caption": "a cow",
        "text": "a hen",
        "captions_i18n": [{"lang": "de", "text": "ein Hund", "source": "mt"}, {"lang": "fr", "text": "un chien"}],
        "captions_synthetic": ["a dog, says a model"],
        "label": 3,
        "geometry": "exact",
        "width": WIDTH,
        "other": "not kept",
    }
    example = Folder(write(tmp_path, [row])).example(0)
    english = tuple(map(Caption, ["a dog", "a cat", "a cow", "a hen"]))
    assert example.captions == (*english, Caption("ein Hund", "de", "mt"), Caption("un chien", "fr", "human"))
    synthetic = (Caption("a dog, says a model", "en", "synthetic"),)
    assert example.extras == {"label": 3, "geometry": "exact", "captions_synthetic": synthetic}
    assert example.name == "a.png"
    assert example.image.shape == (3, HEIGHT, WIDTH) and example.image.dtype == torch.uint8
    assert example.image[0, 0, 0] > 200 and example.image[2, 0, -1] > 200


def test_lang_is_the_language_of_plain_captions_and_phrases(tmp_path: Path) -> None:
    region = {"bbox": [1, 2, 9, 8], "phrase": "ein Hund", "phrases": {"en": "a dog"}, "n_boxes": 2, "score": 0.5}
    row = {"file_name": "a.png", "caption": "ein Bild", "lang": "de", "regions": [region]}
    example = Folder(write(tmp_path, [row])).example(0)
    assert example.captions == (Caption("ein Bild", "de"),)
    assert example.regions == (Region((1.0, 2.0, 9.0, 8.0), {"de": "ein Hund", "en": "a dog"}, 2, score=0.5),)


def test_an_example_asked_in_one_language_has_that_language_or_else_all(tmp_path: Path) -> None:
    region = {"bbox": [0, 0, 9, 9], "phrases": {"en": "a dog", "de": "ein Hund"}}
    i18n = [{"lang": "fr", "text": "un chien"}]
    row = {"file_name": "a.png", "captions": ["a dog"], "captions_i18n": i18n, "regions": [region]}
    source = Folder(write(tmp_path, [row]))
    assert source.example(0, "fr").captions == (Caption("un chien", "fr"),)
    assert len(source.example(0, "cs").captions) == 2
    assert source.example(0, "de").regions[0].phrases == {"de": "ein Hund"}
    assert len(source.example(0, "cs").regions[0].phrases) == 2


def test_languages_are_ordered_by_frequency_and_restrict_texts_and_rows(tmp_path: Path) -> None:
    german = [{"lang": "de", "text": text} for text in ("eins", "zwei", "drei", "vier")]
    rows = [
        {"file_name": "a.png", "captions": ["one"], "captions_i18n": german, "split": "train"},
        {"file_name": "b.png", "captions": ["two"], "split": "train"},
        {"file_name": "c.png", "captions": ["three"], "label": 1, "split": "train"},
    ]
    spec = write(tmp_path, rows)
    assert Folder(spec).languages == Folder(spec, languages=["all"]).languages == ("de", "en")
    only = Folder(spec, languages=["de"])
    assert only.languages == ("de",)
    assert [only.example(index).name for index in range(len(only))] == ["a.png", "c.png"]  # c has a label to learn
    assert list(only.texts()) == ["eins", "zwei", "drei", "vier"]
    with pytest.raises(UserError, match="no texts in ja; its languages are de, en"):
        Folder(spec, languages=["de", "ja"])


def test_texts_are_captions_and_phrases_in_the_files_order(tmp_path: Path) -> None:
    rows = good(2, regions=[{"bbox": [0, 0, 5, 5], "phrase": "a box"}])
    assert list(Folder(write(tmp_path, rows)).texts()) == ["picture 0", "a box", "picture 1", "a box"]


def test_an_image_held_out_by_any_row_never_trains(tmp_path: Path) -> None:
    names = ["train", None, "validation", "val", "test"]
    rows = [{"file_name": f"{i}.png", "caption": "x", "split": split} for i, split in enumerate(names)]
    rows.append({"file_name": "4.png", "caption": "the image of a test row", "split": "train"})
    spec = write(tmp_path, rows)
    splits = {split: Folder(spec, split=split) for split in ("train", "val", "test")}
    held = {split: [source.example(i).name for i in range(len(source))] for split, source in splits.items()}
    assert held == {"train": ["0.png", "1.png"], "val": ["2.png", "3.png"], "test": ["4.png"]}
    assert splits["val"].describe()["splits"] == {"train": 2, "val": 2, "test": 1}


def test_rows_of_one_image_are_one_example_with_all_their_texts(tmp_path: Path) -> None:
    region, other = {"bbox": [0, 0, 5, 5], "phrase": "x"}, {"bbox": [9, 9, 20, 20], "phrase": "y"}
    rows = [
        {"file_name": "a.png", "caption": "one", "regions": [region], "qa": [{"question": "q", "answer": "a"}]},
        {"file_name": "b.png", "caption": "another image"},
        {"file_name": "./a.png", "captions": ["two", "one"], "regions": [region, other], "split": "train"},
        {"file_name": "a.png", "caption": "drei", "lang": "de", "qa": [{"question": "r", "answer": "b"}]},
        {"file_name": "a.png", "caption": "a fox", "label": "fox"},
    ]
    source = Folder(write(tmp_path, rows))
    first, second, labelled = (source.example(index) for index in range(3))
    assert [(caption.text, caption.language) for caption in first.captions] == [
        ("one", "en"),
        ("two", "en"),
        ("drei", "de"),
    ]
    assert [region.phrases["en"] for region in first.regions] == ["x", "y"]
    assert [item["answer"] for item in first.extras["qa"]] == ["a", "b"]
    assert len(source) == 3 and second.name == "b.png" and source.describe()["captions"] == {"en": 4, "de": 1}
    # What an example has once keeps rows apart; they are one image all the same.
    assert labelled.extras == {"label": "fox"} and labelled.group == first.group != second.group


def test_a_group_is_the_image_or_what_the_column_image_id_says(tmp_path: Path) -> None:
    ids = {"a.png": 7, "b.png": 7, "c.png": "7", "d.png": 8.0, "e.png": None}
    rows = [{"file_name": name, "caption": name, "image_id": given, "split": "train"} for name, given in ids.items()]
    source = Folder(write(tmp_path, rows))
    groups = [source.group(index) for index in range(5)]
    assert [groups.index(group) for group in groups] == [0, 0, 0, 3, 4]
    assert [source.example(index).group for index in range(5)] == groups


def test_without_a_split_column_two_percent_are_held_out_for_ever(tmp_path: Path) -> None:
    rows = [{"file_name": f"{i}.png", "caption": "x"} for i in range(2000)]
    spec = write(tmp_path, rows, images=False)
    for row in rows:
        (tmp_path / row["file_name"]).touch()
    train, val = Folder(spec), Folder(spec, split="val")
    assert len(train) + len(val) == 2000 and 25 <= len(val) <= 55
    assert val.rows["file_name"].to_pylist()[:3] == ["135.png", "174.png", "257.png"]  # as `b2sum -l 64` says too


def test_a_split_that_has_no_rows_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no row in split 'test' \(it has 3 train\)"):
        Folder(write(tmp_path, good(3)), split="test")
    rows = [*good(1), {"file_name": "v.png", "text": "hallo", "lang": "de", "split": "val"}]
    with pytest.raises(UserError, match=r"no row with texts in en in split 'val'"):
        Folder(write(tmp_path, rows), split="val", languages=["en"])


REGION = {"bbox": [0, 0, 5, 5], "phrase": "x"}
BAD_LINES = {
    b"{": "line is not JSON",
    b"\xff\xfe": "line is not JSON",
    b"[" * 200_000: "line is not JSON",
    b'{"file_name": "0.png", "width": ' + b"9" * 5000 + b"}": "line is not JSON",
    b"[1]": "line is not a JSON object",
    b"NaN": "line is not a JSON object",
    b'{"caption": "x"}': "no file_name",
    b'{"file_name": 3, "caption": "x"}': "no file_name",
    b'{"file_name": "../0.png", "caption": "x"}': "path leaves the folder",
    b'{"file_name": "/etc/passwd", "caption": "x"}': "path leaves the folder",
    b'{"file_name": "C:\\\\0.png", "caption": "x"}': "path leaves the folder",
    b'{"file_name": "images\\\\..\\\\..\\\\0.png", "caption": "x"}': "path leaves the folder",
    b'{"file_name": "link.png", "caption": "x"}': "path leaves the folder",
    b'{"file_name": "away/0.png", "caption": "x"}': "path leaves the folder",
    b'{"file_name": "circle/0.png", "caption": "x"}': "image file is missing",
    b'{"file_name": "pipe.png", "caption": "x"}': "image file is missing",
    b'{"file_name": "images", "caption": "x"}': "image file is missing",
    b'{"file_name": ".", "caption": "x"}': "image file is missing",
    b'{"file_name": "gone/0.png", "caption": "x"}': "image file is missing",
    b'{"file_name": "\\u0000/0.png", "caption": "x"}': "image file is missing",
    b'{"file_name": "' + b"n" * 5000 + b'/0.png", "caption": "x"}': "image file is missing",
    b'{"file_name": "\\ud800.png", "caption": "x"}': "text is not Unicode",
    b'{"file_name": "images/0.png", "caption": "\\ud800"}': "text is not Unicode",
    b'{"file_name": "images/0.png"}': "no caption, region, label or answer",
    b'{"file_name": "images/0.png", "captions": [], "text": " ", "depth": null}': "no caption, region, label or answer",
    b'{"file_name": "images/0.png", "captions": "x"}': "captions is not a list",
    b'{"file_name": "images/0.png", "captions": [["x"]]}': "captions is not a list of strings",
    b'{"file_name": "images/0.png", "caption": ["x"]}': "caption is not a string",
    b'{"file_name": "images/0.png", "captions_i18n": ["x"]}': "captions_i18n is not a list of {lang, text, source}",
    b'{"file_name": "images/0.png", "captions_i18n": [{"lang": 3, "text": "x"}]}': "lang is not a language code",
    b'{"file_name": "images/0.png", "caption": "x", "lang": "\\u001b[31m"}': "lang is not a language code",
    b'{"file_name": "images/0.png", "caption": "x", "split": "all"}': "split is not train, val or test",
    b'{"file_name": "images/0.png", "caption": "x", "width": 0}': "width or height is not a positive number",
    b'{"file_name": "images/0.png", "caption": "x", "height": "30"}': "width or height is not a positive number",
    b'{"file_name": "images/0.png", "caption": "x", "width": 1'
    + b"0" * 400
    + b"}": "width or height is not a positive number",
    b'{"file_name": "images/0.png", "caption": "x", "regions": {"bbox": 1}}': "regions is not a list",
    b'{"file_name": "images/0.png", "caption": "x", "qa": '
    + b"[" * 99
    + b"]" * 99
    + b"}": "columns nested over 16 deep",
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folder]:
    """Ten good rows for every bad line there is."""
    root = tmp_path_factory.mktemp("hostile") / "data"
    spec = write(root, [*good(10 * len(BAD_LINES)), *BAD_LINES])
    picture().save(root.parent / "0.png")
    (root / "link.png").symlink_to(root.parent / "0.png")
    (root / "away").symlink_to(root.parent)
    (root / "circle").symlink_to(root / "circle")
    os.mkfifo(root / "pipe.png")
    yield Folder(spec)


def test_each_bad_line_costs_only_itself_and_is_counted_by_its_reason(hostile: Folder) -> None:
    assert len(hostile) == 10 * len(BAD_LINES)
    expected = list(BAD_LINES.values())
    assert hostile.skipped == {reason: expected.count(reason) for reason in expected}
    assert hostile.describe()["skipped"] == hostile.skipped


def test_a_link_that_stays_in_the_folder_is_followed(tmp_path: Path) -> None:
    spec = write(tmp_path, good(1))
    (tmp_path / "images/0.png").rename(tmp_path / "blob")
    (tmp_path / "images/0.png").symlink_to("../blob")
    assert Folder(spec).example(0).image.shape == (3, HEIGHT, WIDTH)


def test_a_line_too_long_is_counted_and_the_next_one_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (rows_module, folder_module):
        monkeypatch.setattr(module, "MAX_LINE", 1000)
    long = [{"file_name": "images/0.png", "caption": "x" * length} for length in (1000, 5000)]
    more = [row | {"file_name": f"more-{number}.png"} for number, row in enumerate(good(10))]
    source = Folder(write(tmp_path, [*good(10), long[0], *more, "", long[1]]))
    assert len(source) == 20 and source.skipped.total() == 2
    assert {reason.split(" over ")[0] for reason in source.skipped} == {"line"}


BAD_REGIONS = [
    ("x", "not an object"),
    ({"phrase": "x"}, "bbox is not four finite numbers"),
    ({"bbox": [1, 2, 3], "phrase": "x"}, "bbox is not four finite numbers"),
    ({"bbox": [0, 0, float("nan"), 3], "phrase": "x"}, "bbox is not four finite numbers"),
    ({"bbox": [0, 0, float("inf"), 3], "phrase": "x"}, "bbox is not four finite numbers"),
    ({"bbox": [0, 0, 10**400, 3], "phrase": "x"}, "bbox is not four finite numbers"),
    ({"bbox": [0, 0, "9", 9], "phrase": "x"}, "bbox is not four finite numbers"),
    ({"bbox": [False, 0, True, 9], "phrase": "x"}, "bbox is not four finite numbers"),
    ({"bbox": [5, 5, 5, 9], "phrase": "x"}, "box of no area"),
    ({"bbox": [9, 9, 5, 5], "phrase": "x"}, "box of no area"),
    ({"bbox": [0, 0, 9, HEIGHT + 2], "phrase": "x"}, "box outside the image"),
    ({"bbox": [-2, 0, 9, 9], "phrase": "x"}, "box outside the image"),
    ({"bbox": [WIDTH, 0, WIDTH + 1, 9], "phrase": "x"}, "box outside the image"),
    ({"bbox": [0, 0, 9, 9]}, "no phrase"),
    ({"bbox": [0, 0, 9, 9], "phrase": "  "}, "no phrase"),
    ({"bbox": [0, 0, 9, 9], "phrase": 3}, "phrase is not a string"),
    ({"bbox": [0, 0, 9, 9], "phrases": ["x"]}, "phrases is not an object"),
    ({"bbox": [0, 0, 9, 9], "phrase": "\ud800"}, "text is not Unicode"),
    ({"bbox": [0, 0, 9, 9], "phrase": "x", "n_boxes": 0}, "n_boxes is not a positive whole number"),
    ({"bbox": [0, 0, 9, 9], "phrase": "x", "n_boxes": 10**30}, "n_boxes is not a positive whole number"),
]


@pytest.mark.parametrize(("region", "reason"), BAD_REGIONS)
def test_a_bad_region_costs_only_itself(region: Any, reason: str) -> None:
    columns = {"file_name": "a.png", "width": WIDTH, "height": HEIGHT, "regions": [REGION, region]}
    row = parse_row(json.dumps(columns).encode())
    assert len(row.regions) == 1
    assert row.dropped == {f"region: {reason}": 1}


COLUMNS = [
    "file_name",
    "captions",
    "caption",
    "text",
    "lang",
    "captions_i18n",
    "captions_synthetic",
    "regions",
    "split",
]
COLUMNS += ["width", "height", "label", "qa", "bbox", "phrase", "phrases", "n_boxes", "source"]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["a.png", "en", "val"])
VALUES = st.recursive(SCALARS, lambda v: st.lists(v) | st.dictionaries(st.sampled_from(COLUMNS), v), max_leaves=8)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from(COLUMNS), VALUES))
def test_whatever_stands_in_a_column_ends_as_a_row_or_a_reason(columns: dict[str, Any]) -> None:
    for line in (
        columns,
        {"file_name": "a.png", "caption": "x"} | columns,
        {"file_name": "a.png", "regions": [columns]},
    ):
        try:
            row = parse_row(json.dumps(line).encode())
        except BrokenExample as reason:
            assert str(reason) and str(reason).isascii()  # of our words only
        else:
            pa.table(to_columns(Path("/"), [row]), folder_module.SCHEMA)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"caption": "x" * 20_001}, "text over 20,000 letters"),
        ({"qa": [{"question": "x" * 20_001, "answer": "y"}]}, "text over 20,000 letters"),
        ({"caption": "x", "masks": [{"label": "\ud800", "polygons": [[0, 0, 1, 0, 1, 1]]}]}, "text is not Unicode"),
        ({"caption": "x", "depth": "../out.png"}, "path leaves the folder"),
        ({"caption": "x", "image_id": [1]}, "image_id is neither a text nor a number"),
        ({"caption": "x", "negative_caption": [3]}, "negative_caption is neither a string nor a list of strings"),
    ],
)
def test_what_would_fail_or_take_long_later_is_a_reason_when_the_row_is_read(
    columns: dict[str, Any], reason: str
) -> None:
    with pytest.raises(BrokenExample, match=f"^{reason}$"):
        parse_row(json.dumps({"file_name": "a.png"} | columns).encode())


def test_outlines_of_too_many_corners_are_left_out_and_counted() -> None:
    fine, long = [0, 0, 9, 0, 9, 9], [0.0] * 4002
    masks = [{"label": "fox", "polygons": [corners]} for corners in (fine, long, fine[:5], "x")]
    row = parse_row(json.dumps({"file_name": "a.png", "masks": masks}).encode())
    assert row.extras["masks"] == masks[:1] and row.dropped["mask: over 2,000 corners"] == 1
    assert row.dropped.total() == 3


def test_a_depth_whose_name_no_system_takes_is_that_rows_fault(tmp_path: Path) -> None:
    source = Folder(write(tmp_path, good(1, depth="\0")))
    with pytest.raises(BrokenExample, match="path is none that a system takes"):
        source.example(0)


def test_codes_are_canonical_and_a_language_takes_its_regions(tmp_path: Path) -> None:
    codes = {"zh-cn": "zh-CN", "DE": "de", " pt_BR ": "pt-BR", "zh-hans": "zh-Hans", "deu": "deu"}
    i18n = [{"lang": code, "text": code} for code in codes]
    spec = write(tmp_path, [{"file_name": "a.png", "captions_i18n": i18n, "split": "train"}])
    assert Folder(spec).languages == tuple(codes.values())
    assert Folder(spec, languages=["zh"]).languages == ("zh-CN", "zh-Hans")
    assert Folder(spec, languages=[" De ", "zh_cn"]).languages == ("zh-CN", "de")
    with pytest.raises(UserError, match="no texts in pt-PT"):
        Folder(spec, languages=["pt-PT"])
    with pytest.raises(UserError, match="'x!' is not a language code"):
        Folder(spec, languages=["x!"])


def test_a_box_off_by_rounding_is_cut_to_the_image(tmp_path: Path) -> None:
    regions = [{"bbox": [-1, -0.5, WIDTH + 1, HEIGHT + 0.9], "phrase": "all"}]
    row = {"file_name": "a.png", "regions": regions, "width": WIDTH, "height": HEIGHT}
    assert Folder(write(tmp_path, [row])).example(0).regions[0].bbox == (0, 0, WIDTH, HEIGHT)
    wide = parse_row(json.dumps(row | {"width": 1000, "regions": [{"bbox": [-9, 0, 1009, 9], "phrase": "x"}]}).encode())
    assert wide.regions[0].bbox == (0, 0, 1000, 9)  # one percent of a wide image is more than a pixel


def test_boxes_are_checked_against_the_image_where_the_row_gives_no_size(tmp_path: Path) -> None:
    boxes = [[-5, 0, 9, 9], [0, 0, 9, 9], [0, 0, WIDTH + 5, 9], [90, 90, 99, 99]]
    regions = [{"bbox": box, "phrase": "x"} for box in boxes]
    source = Folder(write(tmp_path, [{"file_name": "a.png", "regions": regions}]))
    assert [region.bbox for region in source.example(0).regions] == [(0, 0, 9, 9)]
    assert not source.skipped and source.languages == ("en",)


def test_a_file_that_is_a_tenth_broken_is_refused_with_the_reasons(tmp_path: Path) -> None:
    assert len(Folder(write(tmp_path / "a", [*good(9), "{"]))) == 9
    with pytest.raises(UserError, match=r"2 of 11 lines .*\(line is not JSON: 1, no file_name: 1\)"):
        Folder(write(tmp_path / "b", [*good(9), "{", "{}"]))


def test_a_file_with_nothing_to_learn_is_refused_with_the_columns_it_lacks(tmp_path: Path) -> None:
    for number, columns in enumerate([{}, {"geometry": "exact"}, {"image_id": 3}, {"captions": [" "]}]):
        with pytest.raises(UserError, match="no column 'captions', 'caption', 'text', 'regions', 'objects', 'label'"):
            Folder(write(tmp_path / str(number), [{"file_name": "a.png", **columns}]))


def test_missing_folders_and_files_are_told_apart(tmp_path: Path) -> None:
    for spec in ("", str(tmp_path / "nowhere"), "scene"):
        with pytest.raises(UserError, match="no such source"):
            open_source(spec)
    with pytest.raises(UserError, match="has no metadata.jsonl"):
        open_source(str(tmp_path))
    (tmp_path / "metadata.jsonl").write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        open_source(str(tmp_path))


def test_open_source_opens_a_folder_with_its_arguments(tmp_path: Path) -> None:
    rows = [*good(2), {"file_name": "v.png", "text": "hallo", "lang": "de", "split": "val"}]
    source = open_source(write(tmp_path, rows), split="val", languages=["de"])
    assert isinstance(source, Folder) and len(source) == 1 and source.languages == ("de",)


def test_a_source_reads_the_same_after_a_journey_to_a_worker(tmp_path: Path) -> None:
    source = Folder(write(tmp_path, good(3)))
    copy = pickle.loads(pickle.dumps(source))
    assert torch.equal(source.example(2).image, copy.example(2).image)
    assert source.example(2).captions == copy.example(2).captions


MODES = {"jpg": ["RGB", "L", "CMYK"], "tiff": ["RGB", "L", "P", "CMYK"], "png": ["RGB", "L", "P", "LA", "RGBA", "1"]}
MODES |= dict.fromkeys(["webp", "gif", "bmp"], ["RGB", "L", "P"])


@pytest.mark.parametrize(("suffix", "mode"), [(suffix, mode) for suffix, modes in MODES.items() for mode in modes])
def test_images_of_every_kind_come_as_rgb(tmp_path: Path, suffix: str, mode: str) -> None:
    expected = picture().convert(mode).convert("RGB")
    path = tmp_path / f"a.{suffix}"
    picture().convert(mode).save(path)
    image = read_image(path)
    assert image.shape == (3, HEIGHT, WIDTH) and image.dtype == torch.uint8
    for x in (2, WIDTH - 3):
        assert image[:, 9, x].tolist() == pytest.approx(expected.getpixel((x, 9)), abs=30)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_images_are_turned_upright(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    picture().save(tmp_path / f"a.{suffix}", exif=exif)
    image = read_image(tmp_path / f"a.{suffix}")
    assert image.shape == (3, WIDTH, HEIGHT)
    assert image[0, 2, 9] > 200 and image[2, -3, 9] > 200  # red above, blue below


def test_of_an_animation_the_first_frame_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.gif")[:, 4, 4].tolist() == [255, 0, 0]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif"])
def test_broken_images_are_named_broken(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    torch.manual_seed(0)
    Image.fromarray(torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8).numpy()).save(path)
    data = path.read_bytes()
    for wrong in (b"", b"not an image", data[: len(data) // 2], data[:20]):
        path.write_bytes(wrong)
        with pytest.raises(BrokenExample, match="^image can't be decoded$"):
            read_image(path)
    path.unlink()
    with pytest.raises(BrokenExample, match="^image can't be decoded$"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["eps", "pcx"])  # PIL would start a program for the one, and read the other
def test_formats_not_listed_are_not_opened(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    picture().save(path)
    with pytest.raises(BrokenExample, match="^image can't be decoded$"):
        read_image(path.rename(tmp_path / "a.png"))


@pytest.mark.parametrize("side", [8001, 20_000])  # above our bound; above the size PIL itself refuses
def test_a_huge_image_is_refused_before_it_is_decoded(
    tmp_path: Path, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("1", (side, side)).save(tmp_path / "a.png")  # some kilobytes that would unpack to 190 MB and more
    monkeypatch.setattr(images_module, "decode_image", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(BrokenExample, match="^image over 64 megapixels$"):
        read_image(tmp_path / "a.png")


def test_a_file_bigger_than_any_image_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(300_000_000)  # takes no room on the disk
    with pytest.raises(BrokenExample, match="^image file over 256 MB$"):
        read_image(tmp_path / "a.png")
