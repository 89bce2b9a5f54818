"""Parquet, datasets, CSV, folders without metadata, COCO and Python objects as sources: the same examples from each."""

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import Run
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Image as ImageColumn
from PIL import Image

from opensiglip.data.example import BrokenExample, Caption, Example
from opensiglip.data.sources.python import spec_of
from opensiglip.data.sources.registry import open_source
from opensiglip.errors import UserError


def picture(shade: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), (shade % 256, 60, 60)).save(file, "PNG")
    return file.getvalue()


def pictures(root: Path, count: int, name: str = "{}.png") -> list[str]:
    """Images in a folder, each of the shade of its number."""
    names = [name.format(number) for number in range(count)]
    for number, one in enumerate(names):
        (root / one).parent.mkdir(parents=True, exist_ok=True)
        (root / one).write_bytes(picture(number))
    return names


def everything(spec: str) -> list[Example]:
    return [
        source.example(index)
        for source in (open_source(spec), open_source(spec, split="val"))
        for index in range(len(source))
    ]


def shades(examples: list[Example]) -> list[int]:
    return [int(example.image[0, 0, 0]) for example in examples]


def write_parquet(path: Path, first: int, count: int, group: int = 7) -> None:
    numbers = range(first, first + count)
    rows = {"jpg": [picture(n) for n in numbers], "caption": [f"picture {n}" for n in numbers]}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(rows), path, row_group_size=group)


def test_every_row_of_parquet_files_is_train_or_val_and_row_groups_are_shards(tmp_path: Path) -> None:
    write_parquet(tmp_path / "0.parquet", 0, 50)
    write_parquet(tmp_path / "1.parquet", 50, 60)
    source = pickle.loads(pickle.dumps(open_source(str(tmp_path))))  # noqa: S301 - ours, as to a worker process
    assert len(source.shards) == 8 + 9 and sum(source.shards) == 108 == len(source)
    examples = everything(str(tmp_path))
    assert sorted(shades(examples)) == list(range(110))
    assert all(
        example.captions == (Caption(f"picture {s}"),) for example, s in zip(examples, shades(examples), strict=True)
    )
    assert source.describe()["columns"] == "image: jpg; texts: caption"
    assert "all but every fiftieth row" in source.describe()["split"]


def test_a_column_whose_name_is_not_utf8_is_a_sentence(tmp_path: Path) -> None:
    write_parquet(tmp_path / "0.parquet", 0, 5)
    damaged = (tmp_path / "0.parquet").read_bytes().replace(b"caption", b"capti\xd0n")
    (tmp_path / "0.parquet").write_bytes(damaged)
    with pytest.raises(UserError, match=r"0\.parquet can't be read .*leave out the file"):
        open_source(str(tmp_path))


def test_parquet_row_groups_are_decoded_once_each_when_rows_come_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(tmp_path / "a.parquet", 0, 49)
    source = open_source(str(tmp_path))
    source.images_read.values.clear()
    read = []
    original = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, group, **kw: read.append(group) or original(self, group, **kw)
    )
    for index in range(len(source)):
        source.image(index)
    assert read == list(range(7))


def test_parquet_as_datasets_writes_it_names_its_classes_and_splits(tmp_path: Path) -> None:
    features = Features({"image": ImageColumn(), "label": ClassLabel(names=["cat", "dog"])})
    rows = {"image": [{"bytes": picture(n), "path": None} for n in range(4)], "label": [0, 1, 1, 0]}
    data = Dataset.from_dict(rows, features=features)
    (tmp_path / "data").mkdir()
    data.to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    data.select([1]).to_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet")
    assert [e.extras["label"] for e in everything(str(tmp_path))] == ["cat", "dog", "dog", "cat", "dog"]


def test_hostile_parquet_rows_cost_only_themselves(tmp_path: Path) -> None:
    bad = pa.array([b"\xff", b"a", b"a", b"a", b"good"], pa.binary()).cast(pa.binary()).view(pa.string())
    images = [picture(), b"none", None, picture(), picture(9)]
    table = pa.table({"image": pa.array(images, pa.binary()), "text": bad, "lang": ["en", "en", "en", "1", "en"]})
    pq.write_table(table, tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"))
    reasons = []
    for index in range(4):
        with pytest.raises(BrokenExample) as reason:
            source.example(index)
        reasons.append(str(reason.value))
    assert reasons == ["row can't be decoded", "image can't be decoded", "no image", "lang is not a language code"]
    assert source.example(4).captions == (Caption("good"),)


def test_a_broken_or_vanished_parquet_file_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", 0, 9)
    source = open_source(str(tmp_path))
    (tmp_path / "a.parquet").unlink()
    source.images_read.values.clear()
    with pytest.raises(BrokenExample, match=r"a\.parquet can't be read"):
        source.example(8)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no more PAR1")
    with pytest.raises(UserError, match=r"b\.parquet can't be read"):
        open_source(str(tmp_path / "b.parquet"))


def test_a_parquet_file_that_changes_under_a_run_costs_only_its_rows(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", 0, 9)
    source = open_source(str(tmp_path))
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole.replace(b"caption", b"capti\xd0n"))
    with pytest.raises(BrokenExample, match=r"a\.parquet can't be read"):
        source.example(0)


def test_an_arrow_file_whose_offsets_lie_is_read_no_further_than_its_texts(tmp_path: Path) -> None:
    """The last text seems to go on into the two bytes that fill up its column in the file."""
    texts = [f"text {number}" for number in range(40)]
    table = pa.table({"text": texts, "image": [picture(number) for number in range(40)]})
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as out, pa.ipc.new_stream(out, table.schema) as stream:
        stream.write_table(table)
    end, whole = len("".join(texts)), (tmp_path / "a.arrow").read_bytes()
    true, lie = (np.array([end - 7, last], "<i4").tobytes() for last in (end, end + 2))
    assert whole.count(true) == 1
    (tmp_path / "a.arrow").write_bytes(whole.replace(true, lie))
    source = open_source(str(tmp_path / "a.arrow"))
    assert source.example(0).captions == (Caption("text 0"),)
    with pytest.raises(BrokenExample, match="row can't be decoded"):
        source.example(len(source) - 1)


def test_columns_that_are_named_are_read_and_unknown_ones_are_listed(tmp_path: Path) -> None:
    pq.write_table(pa.table({"pic": [picture(3)], "alt": ["a"], "long": [["b", "c"]]}), tmp_path / "a.parquet")
    example = open_source(f"{tmp_path}/a.parquet?image=pic&text=long,alt").example(0)
    assert [caption.text for caption in example.captions] == ["b", "c", "a"]
    with pytest.raises(UserError, match="no column 'nope'; there are pic, alt, long"):
        open_source(f"{tmp_path}/a.parquet?image=nope")
    with pytest.raises(UserError, match="give \\?image=NAME of pic, alt, long"):
        open_source(f"{tmp_path}/a.parquet")


def test_datasets_saved_to_disk_and_arrow_files_are_read(tmp_path: Path) -> None:
    features = Features({"image": ImageColumn(), "text": Value("string")})
    rows = {"image": [{"bytes": picture(n), "path": None} for n in range(55)], "text": [f"{n}" for n in range(55)]}
    data = Dataset.from_dict(rows, features=features)
    data.save_to_disk(tmp_path / "one")
    DatasetDict(train=data, validation=data.select([3])).save_to_disk(tmp_path / "two")
    one, two = everything(str(tmp_path / "one")), everything(str(tmp_path / "two"))
    assert sorted(shades(one)) == list(range(55)) and shades(two) == [*range(55), 3]
    assert all(e.captions == (Caption(str(s)),) for e, s in zip(two, shades(two), strict=True))
    (arrow,) = (tmp_path / "one").glob("*.arrow")
    assert len(open_source(str(arrow))) == 54
    with pytest.raises(UserError, match="no split 'test'"):
        open_source(str(tmp_path / "two"), split="test")


def test_a_dataset_of_the_hub_is_read_from_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write_parquet(tmp_path / "hub" / "train.parquet", 0, 3)
    write_parquet(tmp_path / "hub" / "test.parquet", 3, 2)
    assert shades([open_source(f"hf:{tmp_path}/hub", split="test").example(1)]) == [4]
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *a, **k: 1 / 0)
    with pytest.raises(UserError, match=r"can't be fetched from the hub \(.*\); check its name"):
        open_source("hf:nobody/nothing")


@pytest.mark.parametrize(("name", "delimiter"), [("t.csv", ","), ("t.csv", "\t"), ("t.tsv", "\t")])
def test_csv_and_tsv_as_open_clip_reads_them(tmp_path: Path, name: str, delimiter: str) -> None:
    names = pictures(tmp_path / "images", 60)
    lines = [delimiter.join(("filepath", "title", "score"))]
    lines += [delimiter.join((f"images/{one}", f"no {one}", "1")) for one in names]
    lines += [delimiter.join((f"{tmp_path}/images/{names[0]}", '"two\nlines, ""quoted"""', "")), "too", ""]
    (tmp_path / name).write_text("\n".join(lines))
    examples = everything(str(tmp_path / name))
    assert sorted(shades(examples)) == sorted([*range(60), 0])
    assert {example.captions[0].text for example in examples} == {f"no {n}" for n in names} | {'two\nlines, "quoted"'}
    skipped = open_source(str(tmp_path / name)).skipped
    assert skipped == {"line has another number of columns than the header": 1}


def test_hostile_csv_rows_cost_only_themselves(tmp_path: Path) -> None:
    pictures(tmp_path / "in", 1)
    (tmp_path / "secret.png").write_bytes(picture())
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "secret.png")
    paths = ["../secret.png", str(tmp_path / "secret.png"), "link.png", "http://a/b.png", "gone.png", "", "0.png"]
    lines = [b"filepath,title,split", *(f"{path},a,train".encode() for path in paths), b"0.png,\xff\xfe,train"]
    (tmp_path / "in" / "t.csv").write_bytes(b"\n".join(lines))
    source = open_source(str(tmp_path / "in" / "t.csv"))
    reasons = []
    for index in (0, 1, 2, 3, 4, 5, 7):
        with pytest.raises(BrokenExample) as reason:
            source.example(index)
        reasons.append(str(reason.value))
    assert reasons == [
        "path leaves the folder",
        "path leaves the folder: give ?root=FOLDER",
        "path leaves the folder",
        "image is a link: fetch it, with img2dataset for example",
        "image file is missing",
        "no file_name",
        "text is not UTF-8",
    ]
    assert source.example(6).captions == (Caption("a"),)
    assert open_source(f"{tmp_path}/in/t.csv?root={tmp_path}").example(1).captions == (Caption("a"),)


def test_metadata_csv_of_imagefolder_has_splits_and_images_of_one_file_share_a_group(tmp_path: Path) -> None:
    pictures(tmp_path, 2)
    rows = "file_name,text,split\n0.png,a,train\n0.png,b,train\n1.png,c,validation\n1.png,d,train\n"
    (tmp_path / "metadata.csv").write_text(rows)
    source = open_source(str(tmp_path))
    assert len(source) == 2 and source.group(0) == source.group(1)
    assert open_source(str(tmp_path), split="val").example(0).captions == (Caption("c"),)


def test_class_folders_are_labels_and_split_folders_splits(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("cat", "big dog"):
            pictures(tmp_path / split / name, 2)
    assert [e.extras["label"] for e in everything(str(tmp_path))] == ["big dog", "big dog", "cat", "cat"] * 2
    assert open_source(str(tmp_path)).describe()["kind"] == "classes"


def test_images_have_the_lines_of_the_text_beside_them_or_stand_alone(tmp_path: Path) -> None:
    pictures(tmp_path / "deep", 3)
    (tmp_path / "deep" / "0.txt").write_text("one\n\ntwo \n")
    (tmp_path / "deep" / "1.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "deep" / "2.txt").symlink_to(tmp_path / "secret")
    source = open_source(f"images:{tmp_path}/deep")
    assert source.describe()["kind"] == "images"
    assert source.example(0).captions == (Caption("one"), Caption("two"))
    for index, reason in ((1, "text is not UTF-8"), (2, "path leaves the folder")):
        with pytest.raises(BrokenExample, match=reason):
            source.example(index)
    (tmp_path / "deep" / "1.txt").unlink()
    assert open_source(str(tmp_path / "deep")).example(1).captions == ()


COCO = {
    "info": {},
    "images": [
        {"id": 1, "file_name": "0.png", "width": 40, "height": 30},
        {"id": 2, "file_name": "1.png", "width": 40, "height": 30},
        {"id": 3, "file_name": "2.png"},
        {"id": [], "file_name": "3.png"},
    ],
    "categories": [{"id": 7, "name": "fox"}, {"id": 8, "name": "car"}],
}


def test_coco_instances_are_regions_with_counts_and_masks(tmp_path: Path) -> None:
    pictures(tmp_path / "val2017", 3)
    outline = [1, 1, 9, 1, 9, 9]
    things = [
        {"image_id": 1, "category_id": 7, "bbox": [1, 2, 10, 10], "segmentation": [outline], "iscrowd": 0},
        {"image_id": 1, "category_id": 7, "bbox": [20, 2, 10, 10], "iscrowd": 0},
        {"image_id": 1, "category_id": 8, "bbox": [20, 2, float("inf"), 10]},
        {"image_id": 1, "category_id": 8, "bbox": "all"},
        {"image_id": 1, "category_id": 8, "bbox": [0, 0, 9, 9], "segmentation": {"counts": ""}, "iscrowd": 1},
        {"image_id": 2, "category_id": 99, "bbox": [1, 2, 10, 10]},
        {"image_id": 5, "category_id": 7, "bbox": [1, 2, 10, 10]},
        {"image_id": {}},
        "nothing",
    ]
    file = tmp_path / "annotations" / "instances_val2017.json"
    file.parent.mkdir()
    file.write_text(json.dumps(COCO | {"annotations": things}))
    source = open_source(str(file), split="val")
    example = source.example(0)
    assert [(r.bbox, r.phrases, r.n_boxes) for r in example.regions] == [
        ((1, 2, 11, 12), {"en": "fox"}, 2),
        ((20, 2, 30, 12), {"en": "fox"}, 2),
    ]
    assert example.extras == {"masks": [{"label": "fox", "polygons": [outline]}]}
    with pytest.raises(BrokenExample, match="no caption, region, label or answer"):
        source.example(1)
    assert len(source) == 2 and source.skipped == {
        "annotation without image_id": 2,
        "image without id or file_name": 1,
        "region: crowd": 1,
        "annotation of an image that is not listed": 1,
    }


def test_coco_captions_are_all_captions_of_each_image(tmp_path: Path) -> None:
    pictures(tmp_path / "anywhere", 3)
    texts = [{"image_id": 1, "caption": "a"}, {"image_id": 3, "caption": "c"}, {"image_id": 1, "caption": "b"}]
    file = tmp_path / "captions_train2017.json"
    file.write_text(json.dumps(COCO | {"annotations": texts}))
    with pytest.raises(UserError, match=r"0.png is not found; give its folder as .*\?root=FOLDER"):
        open_source(str(file))
    source = open_source(f"{file}?root={tmp_path}/anywhere")
    assert [[c.text for c in source.example(i).captions] for i in range(2)] == [["a", "b"], ["c"]]


class Pairs:
    """As torchvision's data sets are."""

    classes = ("cat", "dog")

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image = Image.open(io.BytesIO(picture(index)))
        return [(image, 1), (image, ["a", "b"]), (np.asarray(image), "c"), (torch.zeros(3, 4, 4), "float")][index]


class Own:
    """An object with examples of its own."""

    def __len__(self) -> int:
        return 51

    def example(self, index: int) -> Example:
        return Example(torch.full((3, 8, 8), index, dtype=torch.uint8), (Caption(f"own {index}", "de"),))


def test_an_object_handed_to_train_is_trained_on(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="int is not a data set"):
        run(tmp_path / "seven", data=7)
    summary = run(tmp_path / "run", data=Own(), steps=2)
    assert summary["steps"] == 2 and summary["images_seen"] == 16


def test_objects_handed_over_are_sources(tmp_path: Path) -> None:
    source = open_source(Pairs())
    assert source.example(0).extras == {"label": "dog"}
    assert [c.text for c in source.example(1).captions] == ["a", "b"]
    assert source.example(2).image.shape == (3, 30, 40) and source.example(2).captions == (Caption("c"),)
    with pytest.raises(BrokenExample, match="not uint8"):
        source.example(3)
    own = open_source(spec_of(Own()))
    assert (own.languages, own.example(7).captions) == (("de",), (Caption("own 7", "de"),))
    assert shades([open_source(spec_of(Own()), split="val").example(0)]) == [49]
    rows = [{"image": picture(n), "caption": f"{n}", "other": object()} for n in range(3)]
    for data in (rows, {"train": rows, "test": rows[:1]}, Dataset.from_list([{"image": picture(2), "text": "t"}])):
        assert spec_of(data) == spec_of(data)
        assert open_source(spec_of(data)).example(0).captions
    with pytest.raises(UserError, match="int is not a data set"):
        spec_of(7)
    with pytest.raises(UserError, match="a process that has ended"):
        open_source("object:Own-999")


def test_a_function_of_a_users_file_is_a_source(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\n"
        "def rows():\n    return [{'image': torch.zeros(3, 9, 9, dtype=torch.uint8), 'text': 'a'}] * 60\n"
        "def none():\n    return 5\n"
    )
    assert open_source(f"{file}:rows").example(58).captions == (Caption("a"),)
    assert len(open_source(f"{file}:rows", split="val")) == 1
    for name, message in (("none", "returns no object with len"), ("gone", "has no function 'gone'")):
        with pytest.raises(UserError, match=message):
            open_source(f"{file}:{name}")


def test_images_only_and_labels_out_of_range_are_left_out_by_reason(tmp_path: Path) -> None:
    rows = [{"image": picture(1), "label": n} for n in (0, 5, -1, "x")]
    (tmp_path / "classes.txt").write_text("cat\ndog")
    spec_of(rows)
    source = open_source(f"{spec_of(rows)}?classes={tmp_path}/classes.txt")
    assert source.example(0).extras == {"label": "cat"}
    for index in (1, 2, 3):
        with pytest.raises(BrokenExample, match="label is not the number of a class"):
            source.example(index)
