"""`data convert`, `split` and `index`: what is written is read back equal, whole, and after any kill."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from opensiglip.apps.cli import main
from opensiglip.data.example import Caption, Example
from opensiglip.data.sources.python import spec_of
from opensiglip.data.sources.registry import open_source
from opensiglip.data.sources.tar_index import places
from opensiglip.data.writing import shards as writing
from opensiglip.data.writing.convert import Draw, check_draw, convert
from opensiglip.data.writing.formats import FORMATS
from opensiglip.errors import UserError

ROWS = 23


def write_source(root: Path, rows: int = ROWS) -> str:
    """A folder that uses every field of an example, in pictures of all usual formats."""
    root.mkdir(parents=True)
    rng, lines = np.random.default_rng(0), []
    for number in range(rows):
        name = f"{number}.{('png', 'jpg', 'webp', 'ppm')[number % 4]}"
        Image.fromarray(rng.integers(0, 256, (30 + number, 40, 3), np.uint8)).save(root / name)
        Image.fromarray(rng.integers(0, 5000, (6, 8), np.uint16)).save(root / f"depth{number}.png")
        row = {
            "file_name": name,
            "captions": [f"picture {number}"],
            "captions_i18n": [
                {"lang": "de", "text": f"Bild {number}", "source": "mt"},
                {"lang": "zh-Hans", "text": "图片", "source": "human"},
            ],
            "captions_synthetic": ["drawn by nobody"],
            "regions": [
                {"bbox": [1.5, 2, 20, 21.25], "phrase": "a thing", "phrases": {"de": "ein Ding"}, "mask": 0},
                {"bbox": [0, 0, 9, 9], "phrase": "two", "n_boxes": 2, "score": 0.75, "names": {"en": "pair"}},
            ],
            "masks": [{"label": "thing", "polygons": [[1, 2, 3, 4, 5, 7.5]]}],
            "label": {"en": f"class {number % 3}", "de": "Klasse"},
            "groups": {"place": "north"},
            "qa": [{"question": "What?", "answer": "That."}],
            "ocr": [{"text": "STOP"}],
            "negative_caption": ["no picture"],
            "image_id": number // 2,
            "depth": f"depth{number}.png",
            "split": ("train", "train", "val", "test")[number % 4],
        }
        if number % 5 == 1:  # a row of the fewest fields
            row = {"file_name": name, "captions_i18n": [{"lang": "de", "text": "nur"}], "split": "train"}
        lines.append(json.dumps(row))
    (root / "metadata.jsonl").write_text("\n".join(lines))
    return str(root)


def read(spec: str) -> dict[str, Example]:
    """Every example of every split, by split and name."""
    found = {}
    for split in ("train", "val", "test"):
        source = open_source(spec, split=split)
        for index in range(len(source)):
            example = source.example(index)
            assert f"{split}/{example.name}" not in found
            found[f"{split}/{example.name}"] = example
    return found


def assert_equal(one: Example, other: Example) -> None:
    """All fields but the group, which names the place, and the depth map's place."""
    assert torch.equal(one.image, other.image)
    assert one.captions == other.captions and one.regions == other.regions and one.name == other.name
    depths = [example.extras.get("depth") for example in (one, other)]
    assert [depth and Path(depth).read_bytes() for depth in depths[:1]] == [
        depth and Path(depth).read_bytes() for depth in depths[1:]
    ]
    assert {**one.extras, "depth": 0} == {**other.extras, "depth": 0}


def groups(examples: dict[str, Example]) -> set[frozenset[str]]:
    """Which examples are of one group."""
    found: dict[str, set[str]] = {}
    for name, example in examples.items():
        found.setdefault(example.group, set()).add(name)
    return {frozenset(names) for names in found.values()}


@pytest.mark.parametrize("formats", [("tar",), ("parquet",), ("folder",), ("tar", "parquet", "folder")])
def test_what_is_converted_is_read_back_equal_in_every_field(tmp_path: Path, formats: tuple[str, ...]) -> None:
    before = read(spec := write_source(tmp_path / "source"))
    for number, format in enumerate(formats):
        convert(spec, tmp_path / f"{number}", to=format, shard_mb=0.02, workers=0)
        spec = str(tmp_path / f"{number}")
    after = read(spec)
    assert before.keys() == after.keys() and len(before) == ROWS
    for name, example in before.items():
        assert_equal(example, after[name])
    assert {g for g in groups(before) if len(g) > 1} == {g for g in groups(after) if len(g) > 1}
    assert any(region.score == 0.75 and region.names == {"en": "pair"} for e in after.values() for region in e.regions)
    assert any(region.mask == 0 for example in after.values() for region in example.regions)


def test_files_are_copied_byte_for_byte_and_checksums_hold(tmp_path: Path) -> None:
    spec, out = write_source(tmp_path / "source"), tmp_path / "out"
    convert(spec, out, to="folder", workers=0)
    assert subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=out, timeout=60).returncode == 0
    listed = {line[66:] for line in (out / "SHA256SUMS").read_text().splitlines()}
    assert listed == {
        file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file() and "convert" not in file.name
    } - {"SHA256SUMS"}
    copies = {file.read_bytes() for file in out.rglob("*.jpg")} | {file.read_bytes() for file in out.rglob("*.webp")}
    assert copies == {file.read_bytes() for file in (tmp_path / "source").iterdir() if file.suffix in (".jpg", ".webp")}


def test_tars_are_also_what_other_loaders_read(tmp_path: Path) -> None:
    convert(write_source(tmp_path / "source"), tmp_path / "out", to="tar", workers=0)
    with tarfile.open(tmp_path / "out" / "train-00000.tar") as tar:
        names = tar.getnames()
        assert names[:3] == ["000000000.png", "000000000.txt", "000000000.json"]
        assert tar.extractfile("000000000.txt").read() == b"picture 0"
    assert all(file.with_name(f"{file.name}.index").is_file() for file in (tmp_path / "out").glob("*.tar"))


def test_a_text_that_a_reader_would_take_for_another_is_not_written_beside_the_json(tmp_path: Path) -> None:
    captions = (Caption("Hund", "de"), Caption("Hund", "en"))
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    rows = [Example(image, captions), Example(image, captions[::-1])]
    convert(spec_of(rows), tmp_path / "out", to="tar", workers=0)
    source = open_source(str(tmp_path / "out"))
    assert [source.example(i).captions for i in range(2)] == [captions, captions[::-1]]


def test_resized_images_have_their_boxes_and_outlines_moved(tmp_path: Path) -> None:
    spec = write_source(tmp_path / "source")
    convert(spec, tmp_path / "out", to="tar", resize=20, quality=95, workers=0)
    before, after = read(spec), read(str(tmp_path / "out"))
    name = "train/20.png"  # 50 x 40 pixels: half of it
    assert after[name].image.shape == (3, 25, 20)
    assert [r.bbox for r in after[name].regions] == [
        pytest.approx(tuple(edge / 2 for edge in r.bbox)) for r in before[name].regions
    ]
    assert after[name].extras["masks"][0]["polygons"] == [[0.5, 1, 1.5, 2, 2.5, 3.75]]
    assert {min(example.image.shape[1:]) for example in after.values()} == {20}


def test_broken_rows_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = write_source(tmp_path / "source")
    (tmp_path / "source" / "4.png").write_bytes(b"\x89PNG no more")
    (tmp_path / "source" / "depth8.png").unlink()
    assert main(["data", "convert", spec, "--out", str(tmp_path / "out"), "--workers", "0"]) == 0
    said = capsys.readouterr().out
    assert "left out: image can't be decoded: 1" in said and "left out: depth file is missing: 1" in said
    assert len(read(str(tmp_path / "out"))) == ROWS - 2


def test_columns_that_json_does_not_hold_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert("scenes:drawings=9,count=1,objects=2", tmp_path / "out", to="tar", workers=0)
    facts = json.loads((tmp_path / "out" / "convert.json").read_text())
    lost = facts["done"]["lost"]
    assert lost["column masks is not JSON"] == lost["column drawings is not written"] > 0


@pytest.mark.parametrize("format", FORMATS)
def test_two_processes_write_the_same_bytes_as_one(tmp_path: Path, format: str) -> None:
    spec = write_source(tmp_path / "source")
    sums = []
    for workers in (0, 2):
        out = tmp_path / f"{workers}"
        convert(spec, out, to=format, shard_mb=0.02, workers=workers)
        sums.append((out / "SHA256SUMS").read_text())
    assert sums[0] == sums[1] and len(sums[0].splitlines()) > 4


KILLED = """
import sys, time
from opensiglip.data.writing import formats, convert
slow = formats.Tar.write
def write(self, *arguments):
    time.sleep(0.02)
    slow(self, *arguments)
formats.Tar.write = write
print("begun", flush=True)
convert.convert(sys.argv[1], convert.Path(sys.argv[2]), to="tar", shard_mb=0.01, workers=0)
"""


def test_what_was_killed_at_any_moment_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    spec, out = write_source(tmp_path / "source"), tmp_path / "out"
    convert(spec, tmp_path / "whole", to="tar", shard_mb=0.01, workers=0)
    command = [sys.executable, "-c", KILLED, spec, str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout.readline() == b"begun\n"
        while len(list(out.glob("*.tar"))) < 3:
            time.sleep(0.005)
        time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    kept = {tar: tar.stat().st_mtime_ns for tar in out.glob("*.tar")}
    assert not (out / "SHA256SUMS").exists() and 3 <= len(kept) < len(list((tmp_path / "whole").glob("*.tar")))
    done = [file.stem for file in (out / ".shards").glob("*.json")]
    convert(spec, out, to="tar", shard_mb=0.01, workers=0)
    assert (out / "SHA256SUMS").read_text() == (tmp_path / "whole" / "SHA256SUMS").read_text()
    assert len(done) >= 2 and not (out / ".shards").exists()
    assert all(tar.stat().st_mtime_ns == then for tar, then in kept.items() if tar.stem[-5:] in done)


def test_a_shard_that_was_lost_or_cut_after_it_was_done_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, out = write_source(tmp_path / "source"), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(writing, "finish", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            convert(spec, out, to="tar", shard_mb=0.02, workers=0)
    tars = sorted(out.glob("*.tar"))
    tars[0].unlink()
    os.truncate(tars[1], 512)
    convert(spec, out, to="tar", shard_mb=0.02, workers=0)
    assert len(read(str(out))) == ROWS


def test_a_folder_of_something_else_is_not_written_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec, out = write_source(tmp_path / "source"), tmp_path / "out"
    convert(spec, out, to="tar", workers=0)
    before = sorted(out.iterdir())
    for words in (["--to", "parquet"], ["--shard-mb", "7"], ["--resize", "8"]):
        assert main(["data", "convert", spec, "--out", str(out), "--workers", "0", *words]) == 2
        assert "another source or with other flags" in capsys.readouterr().err
    assert main(["data", "convert", spec, "--out", str(tmp_path / "source"), "--workers", "0"]) == 2
    assert "holds other files" in capsys.readouterr().err
    assert main(["data", "convert", spec, "--out", str(out), "--workers", "0"]) == 0
    assert sorted(out.iterdir()) == before


def test_two_writers_of_one_folder_are_one_too_many(tmp_path: Path) -> None:
    with writing.sole_writer(tmp_path / "out", {}), pytest.raises(UserError, match="another process is writing"):
        writing.write_shards(tmp_path / "out", {}, "tar", lambda number: (), [1], 0)


@pytest.mark.parametrize(
    "words, part",
    [
        ("--to zip", "zip"),
        ("--shard-mb 0", "--shard-mb 0.0 is out of range"),
        ("--resize 0", "--resize 0 is out of range"),
        ("--quality 101", "--quality 101 is out of range"),
        ("--workers -1", "--workers -1 is out of range"),
    ],
)
def test_a_wrong_flag_is_one_sentence(
    folder: str, tmp_path: Path, words: str, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "convert", folder, "--out", str(tmp_path / "out"), *words.split()]) == 2
    said = capsys.readouterr().err
    assert part in said and len(said.splitlines()) == 1


def splits(out: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name in read_some(str(out)):
        split, _, own = name.partition("/")
        found.setdefault(split, set()).add(own)
    return found


def read_some(spec: str) -> list[str]:
    names = []
    for split in ("train", "val", "test"):
        try:
            source = open_source(spec, split=split)
        except UserError:
            continue
        names += [f"{split}/{source.example(index).name}" for index in range(len(source))]
    return names


def test_a_split_by_name_is_the_same_whatever_the_order_and_place(tmp_path: Path) -> None:
    spec = write_source(tmp_path / "a" / "source", 40)
    lines = (tmp_path / "a" / "source" / "metadata.jsonl").read_text().splitlines()
    other = tmp_path / "b" / "elsewhere"
    (tmp_path / "a" / "source").rename(other.parent.mkdir() or other)
    (other / "metadata.jsonl").write_text("\n".join(lines[::-1]))
    convert(str(other), tmp_path / "two", to="tar", workers=0, draw=Draw(0.3, 0.2, "name"))
    other.rename(spec)
    (Path(spec) / "metadata.jsonl").write_text("\n".join(lines))
    convert(spec, tmp_path / "one", to="folder", workers=2, shard_mb=0.02, draw=Draw(0.3, 0.2, "name"))
    one, two = splits(tmp_path / "one"), splits(tmp_path / "two")
    assert one == two and sum(map(len, one.values())) == 40 and all(len(names) > 2 for names in one.values())


def test_rows_of_one_image_or_class_are_of_one_split(tmp_path: Path) -> None:
    spec = write_source(tmp_path / "source", 40)
    for by, of in (("name", lambda e: e.extras.get("image_id", e.name)), ("label", lambda e: e.extras["label"]["en"])):
        out = tmp_path / by
        convert(spec, out, to="tar", workers=0, draw=Draw(0.34, 0.33, by))
        where: dict[str, set[str]] = {}
        for split in splits(out):
            source = open_source(str(out), split=split)
            for index in range(len(source)):
                where.setdefault(str(of(source.example(index))), set()).add(split)
        assert all(len(found) == 1 for found in where.values()) and len(set().union(*where.values())) > 1
    facts = json.loads((tmp_path / "label" / "convert.json").read_text())["done"]
    assert facts["broken"] == {"no label to split by": 8}


def test_copies_of_an_image_are_of_one_split_by_image(tmp_path: Path) -> None:
    root = tmp_path / "source"
    root.mkdir()
    for number in range(40):
        Image.new("RGB", (8, 8), (number // 2, 0, 0)).save(root / f"{number}.png")
        (root / f"{number}.txt").write_text("a picture")
    convert(str(root), tmp_path / "out", to="tar", workers=0, draw=Draw(0.3, 0, "image"))
    found = splits(tmp_path / "out")
    pairs = [{int(name[:-4]) // 2 for name in names} for names in found.values()]
    assert len(pairs) == 2 and not pairs[0] & pairs[1] and [len(p) * 2 for p in pairs] == [*map(len, found.values())]


def test_shares_that_are_none_are_one_sentence() -> None:
    for val, test, by, part in (
        (0, 0, "name", "are not fractions; give two of at least 0 whose sum is above 0"),
        (0.7, 0.4, "name", "are not fractions"),
        (0.1, 0, "x", "'x'"),
    ):
        with pytest.raises(UserError, match=part):
            check_draw(val, test, by, ("label",))


def test_all_tars_are_indexed_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert(write_source(tmp_path / "source"), tmp_path / "out", to="tar", shard_mb=0.02, workers=0)
    tars = sorted((tmp_path / "out").glob("*.tar"))
    for tar in tars:
        next(places(tar)).unlink()
    os.truncate(tars[0], tars[0].stat().st_size - 9000)
    assert main(["data", "index", str(tmp_path / "out"), "--workers", "2"]) == 0
    said = capsys.readouterr().out
    assert f"{len(tars)} tars, " in said and "left out: tar is cut off: 1" in said
    assert all(next(places(tar)).is_file() for tar in tars)
    assert main(["data", "index", str(tmp_path / "nowhere.tar")]) == 2
    assert "is missing" in capsys.readouterr().err
