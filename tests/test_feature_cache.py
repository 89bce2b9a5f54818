"""States of frozen towers: found by what an image or a text is, whatever source, row or run shows it."""

import json
import pickle
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from opensiglip.data.example import BrokenExample, Caption, Example, Source
from opensiglip.data.fields.frame import Frame
from opensiglip.data.seen import HASH
from opensiglip.data.sources import state_store
from opensiglip.data.sources.cached import CachedSource, TextInput, TextRows, read_lines, write_lines
from opensiglip.data.sources.referenced import ReferencedSource, without_rows
from opensiglip.data.sources.registry import open_source
from opensiglip.data.sources.state_store import StateStore, StoreWriter, key_of
from opensiglip.data.text import TextPipeline
from opensiglip.training import cache_writer, shown_images
from opensiglip.training.cache_writer import Tower, write_from_states, write_images, write_texts
from opensiglip.training.shown_images import ShownImages, image_key

FRAME = Frame(28)
Encode = Callable[..., int]


def summed(inputs: Tensor) -> Tensor:
    """States [n, 2, 1] that tell any two inputs of these tests apart."""
    values = inputs.flatten(1).long()
    return torch.stack([values @ torch.arange(values.shape[1]), values.sum(1)], 1)[..., None]


@pytest.fixture
def photos(folder: str, tmp_path: Path) -> Path:
    """A copy of the thirty pictures, to be changed."""
    return Path(shutil.copytree(folder, tmp_path / "photos"))


def rows_of(photos: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (photos / "metadata.jsonl").read_text().splitlines()]


def write_rows(photos: Path, rows: Sequence[dict[str, Any]]) -> None:
    (photos / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


def encoded(sources: Source | Sequence[Source], root: Path, frame: Frame = FRAME) -> tuple[int, list[Source]]:
    """How many images the tower had to read, and the sources over its states."""
    reads: list[int] = []
    tower = Tower(root / "images", nn.Linear(1, 1), lambda images: (reads.append(len(images)), summed(images))[1])
    sources = [sources] if isinstance(sources, Source) else sources
    shown = [ShownImages(source, frame, root) for source in sources]
    write_images(shown, tower)
    return sum(reads), [CachedSource(one.source, one.file, tower.folder, side=28) for one in shown]


def assert_as_framed(cached: Source, source: Source) -> None:
    """Every row has the states of its own image, and else what it has in the frame."""
    assert len(cached) == len(source)
    for index in range(len(source)):
        plain, found = source.example(index), cached.example(index)
        image, regions = FRAME.apply(plain, None)
        assert np.array_equal(found.extras["image_states"], summed(image[None])[0].numpy())
        assert found.captions == plain.captions and found.regions == regions and HASH in found.extras
        assert (found.name, found.group, tuple(found.image.shape)) == (plain.name, plain.group, (3, 28, 28))


def other_captions(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        row["captions"] = [text.replace("square", "box") for text in row["captions"]] + ["a picture"]


def more_boxes(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        row["regions"].append({"bbox": [3, 2, 21, 30], "phrase": "something", "score": 0.5})


def moved_boxes(rows: list[dict[str, Any]]) -> None:
    """The texts stay as they are."""
    for row in rows:
        row["regions"][0]["bbox"] = [1, 2, 30, 31]


def exchanged(rows: list[dict[str, Any]]) -> None:
    captions = [row["captions"] for row in rows]
    for row, other in zip(rows, captions[1:] + captions[:1], strict=True):
        row["captions"] = other


def fewer(rows: list[dict[str, Any]]) -> None:
    del rows[::3]


def other_order(rows: list[dict[str, Any]]) -> None:
    rows.reverse()


@pytest.mark.parametrize("change", [other_captions, more_boxes, moved_boxes, exchanged, fewer, other_order])
def test_known_images_are_not_encoded_again_whatever_is_said_of_them(
    photos: Path, tmp_path: Path, change: Callable[[list[dict[str, Any]]], None]
) -> None:
    assert encoded(open_source(str(photos)), tmp_path)[0] == 24
    rows = rows_of(photos)
    change(rows)
    write_rows(photos, rows)
    source = open_source(str(photos))
    count, [cached] = encoded(source, tmp_path)
    assert count == 0
    assert_as_framed(cached, source)


def test_the_same_images_in_another_folder_and_format_are_known(photos: Path, tmp_path: Path) -> None:
    assert encoded(open_source(str(photos)), tmp_path)[0] == 24
    shutil.copytree(photos, tmp_path / "again")
    table = ["image,caption"]
    for row in rows_of(photos):
        if row["split"] == "train":
            name = f"renamed-{row['file_name']}"
            (photos / row["file_name"]).rename(photos / name)
            table.append(f"{name},{row['captions'][0]}")
    (photos / "table.csv").write_text("\n".join(table))
    sources = [open_source(str(tmp_path / "again")), open_source(str(photos / "table.csv"))]
    count, cached = encoded(sources, tmp_path)
    assert count == 0
    for one, source in zip(cached, sources, strict=True):
        assert_as_framed(one, source)
    assert encoded(open_source(str(tmp_path / "again"), split="val"), tmp_path)[0] == 6


def test_one_new_image_and_one_changed_under_its_name_are_encoded(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoded(open_source(str(photos)), tmp_path)
    Image.new("RGB", (40, 30), "yellow").save(photos / "new.png")
    write_rows(photos, [*rows_of(photos), {"file_name": "new.png", "captions": ["yellow"], "split": "train"}])
    Image.new("RGB", (32, 32), "pink").save(photos / "13.png")
    capsys.readouterr()
    source = open_source(str(photos))
    count, [cached] = encoded(source, tmp_path)
    assert count == 2 and "25 images: 23 known, encoding 2, in" in capsys.readouterr().out
    assert_as_framed(cached, source)


def test_an_image_is_encoded_once_however_often_it_is_shown(photos: Path, tmp_path: Path) -> None:
    for row in rows_of(photos)[1:]:
        shutil.copy(photos / "0.png", photos / row["file_name"])
    source = open_source(str(photos))
    count, cached = encoded([source, source], tmp_path)
    assert count == 1
    assert_as_framed(cached[1], source)


def test_a_run_whose_images_are_known_waits_for_no_other(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(str(photos))
    encoded(source, tmp_path)
    monkeypatch.setattr(cache_writer, "turn", None)
    assert encoded(source, tmp_path)[0] == 0
    Image.new("RGB", (32, 32), "pink").save(photos / "0.png")
    with pytest.raises(TypeError):
        encoded(source, tmp_path)


def test_images_without_a_file_are_known_by_their_pixels(tmp_path: Path) -> None:
    for scenes, wanted in ((8, 8), (12, 4)):
        count, [cached] = encoded(open_source(f"scenes:drawings=5,objects=2,count={scenes}", pixels=28), tmp_path)
        assert count == wanted
    assert cached.example(3).extras[HASH] == 0, "drawn: two that look alike need not be the same"


def test_an_image_is_known_by_all_of_its_file_or_by_its_shape_and_pixels(photos: Path) -> None:
    """Two files of 5 kB that differ in the last pixel; pixels that are the same bytes in another shape."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for name in ("0.png", "1.png"):
        Image.fromarray(noise).save(photos / name, compress_level=0)
        noise[-1, -1] ^= 1
    source = open_source(str(photos))
    assert image_key(source, 0) != image_key(source, 1)
    images = [torch.zeros(3, 2, 8), torch.zeros(3, 8, 2), torch.zeros(3, 2, 8), torch.zeros(3, 2, 8)]
    images[3][-1, -1, -1] = 1
    drawn: Any = SimpleNamespace(encoded=lambda index: None, example=lambda index: SimpleNamespace(image=images[index]))
    keys = [image_key(drawn, index) for index in range(4)]
    assert keys[0] == keys[2] and len(set(keys)) == 3


def test_the_rows_of_two_references_go_over_another_view_of_a_sources_examples(
    photos: Path, pipeline: TextPipeline, tmp_path: Path
) -> None:
    """Row 3 has 3 by the reference and 103 by the teacher, over pixels and over states."""
    source = open_source(str(photos))
    _, [view] = encoded(source, tmp_path)
    [lines] = tmp_path.glob("lines-*.jsonl")
    beside: Source = source
    for first, role in ((0, "reference"), (100, "teacher")):
        keys = [image_key(source, index) for index in range(24)]
        StoreWriter(tmp_path / role).append(keys, np.arange(first, first + 24)[:, None], [None] * 24)
        texts = tmp_path / f"{role}-texts", TextInput(pipeline, padded=False)
        beside = ReferencedSource(beside, lines, tmp_path / role, texts, role)
    assert isinstance(beside, ReferencedSource)
    for found, below in ((beside.over(view), view), (beside, source)):
        example, plain = found.example(3), below.example(3)
        rows = [example.extras[f"{role}_rows"][0].tolist() for role in ("reference", "teacher")]
        assert rows == [[3], [103]] and without_rows(found) is below
        assert example.extras.keys() - {"reference_rows", "teacher_rows"} == plain.extras.keys()
        assert torch.equal(example.image, plain.image) and example.captions == plain.captions


def test_a_caption_off_the_cache_has_its_language_its_writer_and_its_weight(photos: Path, tmp_path: Path) -> None:
    rows = rows_of(photos)
    rows[0]["captions_i18n"] = [{"lang": "de", "text": "ein Quadrat", "source": "mt", "weight": 2.0}]
    write_rows(photos, rows)
    source = open_source(str(photos))
    [cached] = encoded(source, tmp_path)[1]
    for language in ("de", "en", None):
        assert cached.example(0, language).captions == source.example(0, language).captions
    assert cached.example(0, "de").captions == (Caption("ein Quadrat", "de", "mt", 2.0),)


def test_lines_have_a_file_for_each_frame_and_each_state_of_a_source(photos: Path, tmp_path: Path) -> None:
    """Two runs at once, of which one writes while the other reads, must not meet in one."""
    source = open_source(str(photos))
    files = [ShownImages(source, frame, tmp_path).file for frame in (FRAME, FRAME, Frame(56))]
    write_rows(photos, rows_of(photos)[:-3])
    files.append(ShownImages(open_source(str(photos)), FRAME, tmp_path).file)
    assert files[0] == files[1] and len(set(files)) == 3


def test_lines_are_those_of_as_many_rows(tmp_path: Path) -> None:
    lines = [b'{"image": ""}\n'] * 3
    write_lines(tmp_path / "lines.jsonl", lines)
    found = read_lines(tmp_path / "lines.jsonl", 3)
    assert found is not None and list(found) == lines and read_lines(tmp_path / "lines.jsonl", 2) is None


@pytest.mark.parametrize(("free", "room"), [(1.2e9, True), (1.05e9, False), (0.9e9, False)])
def test_a_tenth_of_the_room_is_left(free: float, room: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=free))
    assert cache_writer.room_for(tmp_path / "not" / "there", 1.0) == room


def test_a_row_whose_image_can_not_be_read_is_broken_in_every_run(photos: Path, tmp_path: Path) -> None:
    source = open_source(str(photos))
    (photos / "0.png").write_bytes(b"no image")
    (photos / "1.png").unlink()
    for wanted in (22, 0):
        count, [cached] = encoded(source, tmp_path)
        assert count == wanted
        for index in (0, 1):
            with pytest.raises(BrokenExample, match="image can't be decoded"):
                cached.example(index)


def test_of_a_large_source_rows_are_looked_at_before_lines_are_used_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 24 rows the first, the last and one between."""
    monkeypatch.setattr(shown_images, "LOOKED_AT", 3)
    looked: list[int] = []
    key = shown_images.image_key
    monkeypatch.setattr(shown_images, "image_key", lambda source, i: looked.append(i) or key(source, i))
    for change, wanted, most in ((None, 24, 24), (None, 0, 3), ("box", 0, 3), ("image", 1, 27), (None, 0, 3)):
        rows = rows_of(photos)
        if change == "box":
            rows[0]["regions"][0]["bbox"] = [1, 2, 30, 31]
            write_rows(photos, rows)
        elif change == "image":
            Image.new("RGB", (32, 32), "pink").save(photos / "0.png")
        looked.clear()
        source = open_source(str(photos))
        count, [cached] = encoded(source, tmp_path)
        assert count == wanted and len(looked) <= most
        assert_as_framed(cached, source)
    lines = next(tmp_path.glob("lines-*.jsonl"))
    rows_of_file = lines.read_bytes().split(b"\n")
    rows_of_file[6] = rows_of_file[6].replace(b'"captions": [["', b'"captions": [["x')  # of a row that is not looked at
    lines.write_bytes(b"\n".join(rows_of_file))
    assert_as_framed(encoded(source, tmp_path)[1][0], source)


def test_texts_are_known_by_their_ids(pipeline: TextPipeline, tmp_path: Path) -> None:
    """Whatever the length that they are padded to, where padding is not read."""
    reads: list[int] = []
    tower = Tower(tmp_path / "texts", nn.Linear(1, 1), lambda ids: (reads.append(len(ids)), summed(ids))[1])
    for texts, length, padded, wanted in (
        (["a fox", "a fox", "two  FOXES"], 24, False, 3),  # and the empty text
        (["two foxes", "a fox"], 40, False, 0),
        (["a fox", "a harp"], 24, False, 1),
        (["a fox"], 24, True, 2),
        (["a fox"], 40, True, 2),
    ):
        reads.clear()
        read = TextInput(pipeline.with_length(length), padded)
        write_texts(texts, tower, read)
        assert sum(reads) == wanted
        store = StateStore(tower.folder)
        for text in texts:
            assert store[read.key(text)].shape == (2, 1)
            ids = read.pipeline.fixed(text).tolist()
            assert read.ids(text).tolist() == (
                ids if padded else [one for one in ids if one != read.pipeline.policy.pad_id]
            )


def test_texts_keep_their_own_states(pipeline: TextPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_writer, "TEXTS_AT_ONCE", 2)
    tower, read = Tower(tmp_path / "texts", nn.Linear(1, 1), summed), TextInput(pipeline, padded=True)
    texts = ["a fox", "two red apples", "a harp", "a zebra on the grass"]
    write_texts(texts, tower, read)
    for text in texts:
        wanted = summed(torch.from_numpy(read.ids(text))[None])[0].numpy()
        assert np.array_equal(StateStore(tower.folder)[read.key(text)], wanted)


def test_rows_of_texts_remember_so_many_keys(
    pipeline: TextPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts that begin alike have their own; behind the last that is remembered a key is made anew."""
    texts, read = ["a fox", "a fox and a harp", "a harp"], TextInput(pipeline, padded=False)
    StoreWriter(tmp_path).append([read.key(text) for text in texts], np.arange(3)[:, None], [None] * 3)
    made, key = list[str](), TextInput.key
    monkeypatch.setattr(TextInput, "key", lambda self, text: made.append(text) or key(self, text))
    monkeypatch.setattr("opensiglip.data.sources.cached.REMEMBERED", 2)
    rows = TextRows(StateStore(tmp_path), read)
    for _ in range(2):
        assert [int(rows[text][0]) for text in texts] == [0, 1, 2]
    assert made == [*texts, texts[2]] and list(rows.keys) == texts[:2]


def test_heads_read_the_states_that_there_are(tmp_path: Path) -> None:
    """Of an image that could not be read there are none, and no row is made; a key that comes twice has one."""
    keys, encoded, reads = [key_of(str(number).encode()) for number in range(4)], tmp_path / "states", list[int]()
    StoreWriter(encoded).append(keys[:3], np.arange(3, dtype=np.float32)[:, None], [None] * 3)
    heads = Tower(tmp_path / "heads", nn.Linear(1, 1), lambda states: (reads.append(len(states)), 2 * states + 1)[1])
    for _ in range(2):
        write_from_states("images", [keys[3], keys[2], *keys[:3]], encoded, heads)
    rows = StateStore(heads.folder)
    assert [float(rows[key][0]) for key in keys[:3]] == [1, 3, 5] and reads == [3]
    with pytest.raises(KeyError):
        rows[keys[3]]


def test_a_store_finds_the_latest_states_of_a_key_and_no_others(tmp_path: Path) -> None:
    keys = [key_of(str(number).encode()) for number in range(300)]
    writer = StoreWriter(tmp_path / "store")
    for start in range(0, 300, 100):
        writer.append(keys[start : start + 100], np.arange(start, start + 100)[:, None], list(range(100)))
    before = StateStore(tmp_path / "store")
    writer.append(keys[5:7], np.array([[-5], [-6]]), ["five", "six"])
    found = pickle.loads(pickle.dumps(StateStore(tmp_path / "store")))
    assert [int(found[key][0]) for key in keys] == [-(n) if n in (5, 6) else n for n in range(300)]
    assert [int(before[key][0]) for key in keys] == list(range(300)), "a reader keeps what it has opened"
    assert writer.fact(keys[5]) == "five" and StoreWriter(tmp_path / "store").fact(keys[120]) == 20
    with pytest.raises(KeyError):
        found[key_of(b"another")]
    with pytest.raises(KeyError):
        StateStore(tmp_path / "none")[keys[0]]


def test_what_a_killed_writer_or_a_damaged_disk_leaves_is_not_relied_on(tmp_path: Path) -> None:
    folder, keys = tmp_path / "store", [key_of(str(number).encode()) for number in range(6)]
    writer = StoreWriter(folder)
    for start in (0, 2):
        writer.append(keys[start : start + 2], np.full((2, 3), start), [None, None])
    states, lines = (folder / "states.bin").read_bytes(), (folder / "blocks.jsonl").read_bytes()
    for bad_states, bad_lines, known in (
        (states + b"rows without a line", lines + b"half of a l", [0, 1, 2, 3]),
        (states[:-1], lines, [0, 1]),
        (states[:-1] + b"x", lines, [0, 1]),
        (states, lines.replace(b'"first": 2', b'"first": 0'), [0, 1]),
        (states, lines[:-5], [0, 1]),
    ):
        (folder / "states.bin").write_bytes(bad_states)
        (folder / "blocks.jsonl").write_bytes(bad_lines)
        assert int(StateStore(folder)[keys[0]][0]) == 0, "a reader opens what is whole"
        writer = StoreWriter(folder)
        assert [n for n in range(6) if keys[n] in writer] == known
        writer.append(keys[2:], np.full((4, 3), 7), [None] * 4)
        assert all(key in StoreWriter(folder) for key in keys)
        assert [int(StateStore(folder)[key][0]) for key in keys] == [0, 0, 7, 7, 7, 7]


def test_a_writer_that_is_killed_before_its_rows_are_written_leaves_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> int:
        raise KeyboardInterrupt

    folder, key = tmp_path / "store", key_of(b"0")
    monkeypatch.setattr(state_store, "row_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        StoreWriter(folder).append([key], np.ones((1, 2)), [None])
    assert not (folder / "blocks.jsonl").exists()


@pytest.mark.parametrize("suffix", ["", "?clean=alt-text", "table"])
def test_an_example_without_its_pixels_is_else_as_with_them(photos: Path, suffix: str) -> None:
    if suffix == "table":
        (photos / "table.csv").write_text("image,caption\n0.png,a fox\n1.png,two apples")
    source = open_source(str(photos / "table.csv") if suffix == "table" else f"{photos}{suffix}")
    for index in range(len(source)):
        plain, found = source.example(index), source.without_pixels(index, 32, 32)
        blank = torch.zeros_like(plain.image)
        assert torch.equal(found.image, blank) and not torch.equal(plain.image, blank)
        assert replace(found, image=blank) == Example(blank, *list(vars(plain).values())[1:])
