"""Tars as a source: what WebDataset shards hold, what is left out of hostile ones, and random access by an index."""

import io
import json
import pickle
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from opensiglip.data.example import BrokenExample, Caption
from opensiglip.data.fields.field import Visit
from opensiglip.data.fields.frame import Frame
from opensiglip.data.sources import tar_index as index_module
from opensiglip.data.sources.metadata import parse_record
from opensiglip.data.sources.registry import open_source
from opensiglip.data.sources.row import row_of
from opensiglip.data.sources.tar_headers import BrokenTar, members_of
from opensiglip.data.sources.tar_index import scan, tar_index
from opensiglip.errors import UserError

Members = Iterable[tuple[str, bytes]]


def picture(shade: int = 0, format: str = "PNG", size: tuple[int, int] = (40, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (shade % 256, 60, 60)).save(file, format)
    return file.getvalue()


def write(path: Path, members: Members, format: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def samples(count: int, first: int = 0) -> list[tuple[str, bytes]]:
    """As img2dataset writes them."""
    members = []
    for number in range(first, first + count):
        facts = {"caption": f"picture {number}", "key": f"{number:09d}", "width": 40, "height": 30, "exif": "{}"}
        members += [
            (f"{number:09d}.jpg", picture(number)),
            (f"{number:09d}.json", json.dumps(facts).encode()),
            (f"{number:09d}.txt", f"picture {number}".encode()),
        ]
    return members


def one(path: Path, members: Members, options: str = "") -> Any:
    return open_source(f"{write(path, members)}{options}").example(0)


def test_shards_as_img2dataset_writes_them_are_recognised_and_every_row_is_train_or_val(tmp_path: Path) -> None:
    for shard in range(3):
        write(tmp_path / f"{shard:05d}.tar", samples(40, 40 * shard))
    for spec in (str(tmp_path), f"{tmp_path}/*.tar", f"{tmp_path}/{{00000..00002}}.tar", f"tar:{tmp_path}"):
        train, val = open_source(spec), open_source(spec, split="val")
        names = [source.example(i).name for source in (train, val) for i in range(len(source))]
        assert sorted(names) == [f"{number:09d}" for number in range(120)]
        assert len(val) == 2 and train.shards == [40, 39, 39]
        example = train.example(70)
        assert example.captions == (Caption(f"picture {int(example.name)}"),)
        assert example.image.shape == (3, 30, 40) and int(example.image[0, 0, 0]) == int(example.name)


def test_a_list_file_names_shards_relative_to_itself(tmp_path: Path) -> None:
    write(tmp_path / "a" / "0.tar", samples(3))
    (tmp_path / "train.txt").write_text("a/0.tar\n\n")
    assert len(open_source(f"tar:{tmp_path}/train.txt")) == 3


def test_splits_are_taken_from_the_names_of_shards(tmp_path: Path) -> None:
    write(tmp_path / "cc-train-0000.tar", samples(60))
    write(tmp_path / "cc-val-0000.tar", samples(5, 60))
    assert (len(open_source(str(tmp_path))), len(open_source(str(tmp_path), split="val"))) == (60, 5)
    with pytest.raises(UserError, match="no row in split 'test'"):
        open_source(str(tmp_path), split="test")


def test_texts_come_from_the_keys_that_are_named(tmp_path: Path) -> None:
    facts = json.dumps({"caption": "plain", "re_caption": ["long", "longer"], "alt": None}).encode()
    members = [("0.png", picture()), ("0.json", facts), ("0.txt", b"alt text")]
    assert [c.text for c in one(tmp_path / "a.tar", members).captions] == ["plain", "alt text"]
    assert [c.text for c in one(tmp_path / "b.tar", members, "?text=re_caption,alt").captions] == ["long", "longer"]


def test_visits_draw_texts_by_the_shares_of_their_keys(tmp_path: Path) -> None:
    both = {"raw": "as found", "short": ["made 1", "made 2"]}
    example = one(
        tmp_path / "a.tar", [("0.jpg", picture()), ("0.json", json.dumps(both).encode())], "?text=raw,short:0.3"
    )
    assert [(c.text, c.weight) for c in example.captions] == [("as found", 0.7), ("made 1", 0.15), ("made 2", 0.15)]
    frame, rng = Frame(16), np.random.default_rng(0)
    drawn = Counter(Visit.draw(example, frame, rng, "en").caption.text for _ in range(4000))
    assert [drawn[c.text] / 4000 for c in example.captions] == pytest.approx([0.7, 0.15, 0.15], abs=0.025)
    assert parse_record(row_of(example), "0.jpg").captions == example.captions  # as convert writes and reads it
    alone = [("0.jpg", picture()), ("0.json", b'{"raw": "as found"}')]
    assert one(tmp_path / "b.tar", alone, "?text=raw,short:0.3").captions == (Caption("as found", weight=0.7),)
    with pytest.raises(UserError, match="leave nothing for a text without one"):
        one(tmp_path / "c.tar", alone, "?text=raw,short:1")


def test_boxes_languages_and_classes_of_the_json_are_those_of_metadata_jsonl(tmp_path: Path) -> None:
    facts = {
        "lang": "DE",
        "caption": "ein Hund",
        "regions": [
            {"bbox": [1, 2, 20, 20], "phrase": "Hund"},
            {"bbox": [1, 2, float("nan"), 9], "phrase": "nichts"},
            {"bbox": [1, 2, 400, 900], "phrase": "draussen"},
        ],
    }
    members = [("x/0.webp", picture(format="WEBP")), ("x/0.json", json.dumps(facts).encode()), ("x/0.cls", b"1\n")]
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    example = one(tmp_path / "a.tar", members, f"?classes={tmp_path}/classes.txt")
    assert example.captions == (Caption("ein Hund", "de"),) and example.extras == {"label": "dog"}
    assert [(region.bbox, region.phrases) for region in example.regions] == [((1, 2, 20, 20), {"de": "Hund"})]


def test_a_row_that_cannot_be_used_costs_only_itself_and_says_why(tmp_path: Path) -> None:
    bad = {
        "0": {"txt": b"no image"},
        "1": {"jpg": picture()},
        "2": {"jpg": b"\xff\xd8\xffnot an image", "txt": b"a"},
        "3": {"jpg": picture(), "txt": b"\xff\xfe"},
        "4": {"jpg": picture(), "json": b"[" * 100_000},
        "5": {"jpg": picture(), "json": b"[1]"},
        "6": {"jpg": picture(), "json": b'{"caption": 7}'},
        "7": {"jpg": picture(), "json": b'{"caption": "\\ud800"}'},
        "8": {"jpg": picture(), "txt": b"good"},
    }
    path = write(tmp_path / "a.tar", [(f"{k}.{e}", data) for k, parts in bad.items() for e, data in parts.items()])
    source = open_source(str(path))
    reasons = []
    for index in range(8):
        with pytest.raises(BrokenExample) as reason:
            source.example(index)
        reasons.append(str(reason.value))
    assert reasons == [
        "sample has no image",
        "no caption, region, label or answer",
        "image can't be decoded",
        "text is not UTF-8",
        "json is not JSON",
        "json is not an object",
        "caption is not text",
        "text is not Unicode",
    ]
    assert source.example(8).captions == (Caption("good"),)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_of_every_tar_format_are_keys(tmp_path: Path, format: int) -> None:
    long = f"{'d' * 90}/{'n' * 80}" if format == tarfile.USTAR_FORMAT else f"{'d' * 300}/{'ü' * 90}"
    path = write(tmp_path / "a.tar", [(f"{long}.txt", b"far"), (f"{long}.png", picture()), ("s.png", b"1")], format)
    source = open_source(str(path))
    assert (source.example(0).name, source.example(0).captions) == (long, (Caption("far"),))
    assert [key for key in scan(path).table["key"].to_pylist()] == [long, "s"]


def test_names_that_lead_out_of_a_folder_are_only_keys(tmp_path: Path) -> None:
    names = ["../../up", "/etc/passwd", "a/../../b"]
    path = write(tmp_path / "in" / "a.tar", [m for n in names for m in ((f"{n}.png", picture()), (f"{n}.txt", b"t"))])
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("c.jpg")
        link.type, link.linkname, link.size = tarfile.SYMTYPE, "/etc/passwd", 0
        tar.addfile(link)
    source = open_source(str(path))
    assert [source.example(i).name for i in range(3)] == names and len(source) == 3
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.tar", "a.tar.index", "in"]


def test_duplicate_members_count_once_and_members_need_not_be_neighbours(tmp_path: Path) -> None:
    members = [("0.png", picture(7)), ("1.png", picture()), ("0.txt", b"first"), ("0.txt", b"second"), ("1.txt", b"t")]
    source = open_source(str(write(tmp_path / "a.tar", [*members, ("README", b""), (".hidden", b"")])))
    assert source.example(0).captions == (Caption("first"),) and len(source) == 2
    assert source.skipped == {"tar member named twice": 1, "tar member without key or extension": 2}


def test_a_truncated_tar_has_the_samples_before_the_cut(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", samples(10))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * 0.6)])
    source = open_source(str(path))
    assert 3 <= len(source) < 10 and source.skipped == {"tar is cut off": 1}
    assert source.example(2).captions == (Caption("picture 2"),)


def test_the_index_is_read_again_unless_the_tar_changed_or_the_index_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.tar", samples(4))
    made = []
    monkeypatch.setattr(index_module, "scan", lambda path: made.append(path) or scan(path))
    for _ in range(2):
        assert len(tar_index(path)) == 4
    assert len(made) == 1
    write(path, samples(6))
    assert len(tar_index(path)) == 6 and len(made) == 2
    place = path.with_name("a.tar.index")
    for damage in (place.read_bytes()[:100], b"", b"ARROW1\0\0" + b"x" * 300):
        place.write_bytes(damage)
        assert len(tar_index(path)) == 6
    assert len(made) == 5


@pytest.mark.parametrize(
    "forge", [lambda row: row["members"][0].update(offset=1 << 50), lambda row: row.update(key=None)]
)
def test_an_index_that_points_outside_its_tar_or_at_nothing_is_made_anew(
    forge: Callable[[dict[str, Any]], None], tmp_path: Path
) -> None:
    path = write(tmp_path / "a.tar", samples(1))
    good = tar_index(path)
    stamp = {key.decode(): value.decode() for key, value in read_metadata(path.with_name("a.tar.index")).items()}
    rows = good.table.to_pylist()
    forge(rows[0])
    forged = index_module.pa.Table.from_pylist(rows, index_module.SCHEMA).replace_schema_metadata(stamp)
    index_module.write_index(forged, path.with_name("a.tar.index"))
    assert tar_index(path).sample(0) == good.sample(0)


def test_opening_a_source_reads_the_heads_of_its_indexes_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for shard in range(20):
        tar_index(write(tmp_path / f"{shard:02d}.tar", samples(10, 10 * shard)))
    read = []
    whole = index_module.read_index
    monkeypatch.setattr(index_module, "read_index", lambda *given: read.append(given) or whole(*given))
    source = open_source(str(tmp_path))
    assert sum(source.shards) == 196
    assert len(read) <= 12  # the tars that 64 rows lie in, which are tried
    assert source.example(195).captions == (Caption("picture 198"),)


def test_a_row_that_names_its_image_is_checked_once_a_visit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = [
        (f"{number}.{extension}", data)
        for number in range(2)
        for extension, data in (("jpg", picture()), ("json", json.dumps({"text": "a", "image_id": number}).encode()))
    ]
    source = open_source(str(write(tmp_path / "a.tar", members)))
    checked = []
    columns = type(source).columns
    monkeypatch.setattr(type(source), "columns", lambda self, row: checked.append(row) or columns(self, row))
    for index in (1, 0):
        assert source.example(index).group == source.group(index) == f"{tmp_path}/: {index}"
    assert checked == [1, 0]


def test_an_index_of_an_earlier_version_is_read_whole_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", samples(4))
    tar_index(path)
    place = tmp_path / "a.tar.index"
    table = pa.ipc.open_file(place.read_bytes()).read_all()
    earlier = {name: value for name, value in table.schema.metadata.items() if name != b"samples"}
    index_module.write_index(table.replace_schema_metadata(earlier), place)
    assert len(open_source(str(path))) == 4
    assert read_metadata(place)[b"samples"] == b"4"


def test_an_index_whose_head_lies_costs_the_rows_of_its_tar_alone(tmp_path: Path) -> None:
    for shard in range(2):
        tar_index(write(tmp_path / f"{shard}.tar", samples(3, 3 * shard)))
    place = tmp_path / "1.tar.index"
    table = pa.ipc.open_file(place.read_bytes()).read_all()
    lying = table.schema.metadata | {b"samples": b"5"}
    index_module.write_index(table.slice(0, 2).replace_schema_metadata(lying), place)
    source = open_source(str(tmp_path))
    assert len(source) == 8
    assert source.example(2).captions == (Caption("picture 2"),)
    with pytest.raises(BrokenExample, match="1.tar has another number of samples than its index said"):
        source.example(3)
    index_module.write_index(table.replace_schema_metadata(table.schema.metadata | {b"samples": b"1000000000"}), place)
    assert len(open_source(str(tmp_path))) == 6  # more samples than the tar has blocks are not believed


def read_metadata(place: Path) -> dict[bytes, bytes]:
    with index_module.pa.memory_map(str(place)) as mapped:
        return dict(index_module.pa.ipc.open_file(mapped).schema.metadata)


def test_a_folder_that_cannot_be_written_to_has_its_indexes_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = write(tmp_path / "a.tar", samples(2))
    path.with_name("a.tar.index").mkdir()  # root may write anywhere, but not a file over a folder
    assert len(tar_index(path)) == 2
    assert len(list((tmp_path / "cache" / "opensiglip" / "tar-index").iterdir())) == 1


def test_a_tar_that_vanishes_or_changes_is_named(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{shard}.tar", samples(3, 3 * shard)) for shard in range(3)]
    source = pickle.loads(pickle.dumps(open_source(str(tmp_path))))  # noqa: S301 - ours, as to a worker process
    paths[0].unlink()
    write(paths[1], samples(4, 50))
    for index, reason in ((0, "0.tar can't be opened"), (3, "1.tar has changed")):
        with pytest.raises(BrokenExample, match=reason):
            source.example(index)
    assert source.example(6).name == "000000006"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{0}/none.tar", "none.tar is missing"),
        ("tar:{0}/*.tar", "no file matches"),
        ("tar:{0}/{{0..9999999}}.tar", "is not a range of up to 1,000,000 shards"),
        ("{0}/empty.bin?text=a&colour=b", "'colour' is not an option"),
    ],
)
def test_what_is_not_there_is_one_sentence(tmp_path: Path, spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_source(spec.format(tmp_path))


def test_tars_without_any_usable_row_are_one_sentence_with_the_reason(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", [("0.png", picture()), ("1.png", picture())])
    with pytest.raises(UserError, match="none of 2 rows .*no caption, region, label or answer: 2"):
        open_source(str(path))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_damage_to_a_tar_does_more_than_end_it(data: st.DataObject) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name in ("a.txt", f"{'n' * 200}.txt", "b.json"):
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
    raw = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, 3000))
        raw[at : at + 12] = data.draw(st.binary(min_size=1, max_size=12))
    raw = raw[: data.draw(st.integers(0, len(raw)))]
    try:
        found = list(members_of(io.BytesIO(raw), len(raw)))
    except BrokenTar:
        return
    assert all(member.offset >= 0 and member.offset + member.size <= len(raw) for member in found)
