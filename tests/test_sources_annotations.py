"""Annotations as they are downloaded, a small hand-made set of each form: all of it is read, all the rest counted."""

import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from datasets import Image as ImageColumn
from PIL import Image

from opensiglip.data.example import BrokenExample, Example, Source
from opensiglip.data.sources import records as records_module
from opensiglip.data.sources import refcoco as refcoco_module
from opensiglip.data.sources.plain_pickle import NotPlain, read_plain
from opensiglip.data.sources.registry import open_source
from opensiglip.data.sources.xml import parse_xml
from opensiglip.errors import UserError

BOMB = (
    b"""<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "xxxxxxxxxx"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>"""
)


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), (9, 60, 60)).save(file, "PNG")
    return file.getvalue()


def files(root: Path, contents: dict[str, Any]) -> Path:
    """A folder of these files: images where a name ends as one's, JSON where the content is no text."""
    for name, content in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None or isinstance(content, bytes):
            path.write_bytes(png() if content is None else content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
    return root


def boxes(example: Example) -> list[tuple[tuple[float, ...], str, int]]:
    return [(region.bbox, region.phrases["en"], region.n_boxes) for region in example.regions]


def texts(example: Example) -> list[str]:
    return [caption.text for caption in example.captions]


def names(source: Source) -> list[str]:
    return [source.example(index).name for index in range(len(source))]


COCO = {
    "images": [{"id": 1, "file_name": "1.png", "width": 40, "height": 30}, {"id": 2, "file_name": "2.png"}],
    "categories": [{"id": 7, "name": "fox"}, {"id": 8, "name": "floor-other-merged"}],
}


def test_captions_and_instances_of_several_files_are_joined_and_splits_follow_their_names(tmp_path: Path) -> None:
    thing = {"image_id": 1, "category_id": 7, "bbox": [1, 2, 10, 10]}
    contents: dict[str, Any] = {f"{part}2017/{number}.png": None for part in ("train", "val") for number in (1, 2)}
    for part in ("train", "val"):
        contents[f"annotations/captions_{part}2017.json"] = COCO | {
            "annotations": [{"image_id": 1, "caption": part}, {"image_id": 1, "caption": 5}]
        }
        contents[f"annotations/instances_{part}2017.json"] = COCO | {"annotations": [thing, {**thing, "iscrowd": 1}]}
    root = files(tmp_path, contents)
    spec = f"coco:{root}/annotations/{{captions,instances}}_{{train,val}}2017.json"
    for part in ("train", "val"):
        source = open_source(spec, split=part)
        assert (texts(source.example(0)), boxes(source.example(0))) == ([part], [((1, 2, 11, 12), "fox", 1)])
        assert source.skipped == {"region: crowd": 1, "caption is not text": 1}
        assert source.group(0).startswith(f"{root}/{part}2017/")
    with pytest.raises(UserError, match="no row in split 'test'"):
        open_source(spec, split="test")


def test_panoptic_segments_are_regions_with_plain_names(tmp_path: Path) -> None:
    segments = [
        {"category_id": 7, "bbox": [1, 2, 10, 10], "iscrowd": 0},
        {"category_id": 8, "bbox": [0, 0, 40, 30], "iscrowd": 0},
        {"category_id": 7, "bbox": [0, 0, 9, 9], "iscrowd": 1},
        "nothing",
    ]
    one = {"image_id": 1, "file_name": "1.png", "segments_info": segments}
    files(tmp_path, {"val2017/1.png": None, "panoptic_val2017.json": COCO | {"annotations": [one]}})
    source = open_source(f"{tmp_path}/panoptic_val2017.json", split="val")
    assert boxes(source.example(0)) == [((1, 2, 11, 12), "fox", 1), ((0, 0, 40, 30), "floor", 1)]
    assert source.skipped == {"region: crowd": 1}


def test_lvis_finds_images_by_their_url_and_refers_to_none_whose_like_has_no_box(tmp_path: Path) -> None:
    image = {"id": 1, "coco_url": "http://images.example/train2017/1.png", "not_exhaustive_category_ids": [8]}
    things = [{"image_id": 1, "category_id": n, "bbox": [1, 2, 10, 10], "segmentation": []} for n in (7, 8)]
    stored = {
        "images": [image | {"neg_category_ids": []}],
        "annotations": things,
        "categories": [{"id": 7, "name": "baseball_bat"}, {"id": 8, "name": "bow_(weapon)"}],
    }
    files(tmp_path, {"train2017/1.png": None, "annotations/lvis_v1_train.json": stored})
    source = open_source(f"lvis:{tmp_path}/annotations/lvis_v1_train.json")
    assert boxes(source.example(0)) == [((1, 2, 11, 12), "baseball bat", 1), ((1, 2, 11, 12), "bow (weapon)", 2)]
    assert source.describe()["kind"] == "lvis"


def references(splits: dict[int, str]) -> list[dict[str, Any]]:
    """A reference of two sentences to the object of each image."""
    return [
        {
            "ref_id": n,
            "ann_id": 10 * n,
            "image_id": n,
            "split": split,
            "sentences": [{"sent": f"fox {n}", "raw": f"Fox {n}!", "tokens": ["fox"]}, {"sent": f"animal {n}"}],
        }
        for n, split in splits.items()
    ]


@pytest.fixture
def refcoco(tmp_path: Path) -> Path:
    """RefCOCO and RefCOCO+ beside each other, and COCO's images of 2014."""
    images = [{"id": n, "file_name": f"COCO_train2014_{n}.png", "width": 40, "height": 30} for n in range(1, 6)]
    instances = {"images": images, "annotations": [{"id": 10 * n, "bbox": [n, 2, 10, 10]} for n in range(1, 6)]}
    own = references({1: "train", 2: "train", 3: "val", 4: "testA", 5: "testB"})
    own.append({"image_id": 99, "ann_id": 1, "split": "train", "sentences": []})
    other = references({2: "testA", 1: "train"})
    contents: dict[str, Any] = {f"images/train2014/COCO_train2014_{n}.png": None for n in range(1, 6)}
    contents |= {
        "refcoco/instances.json": instances,
        "refcoco/refs(unc).p": pickle.dumps(own, protocol=2),
        "refcoco/refs(google).json": references({1: "val"}),
        "refcoco+/instances.json": instances,
        "refcoco+/refs(unc).json": other,
    }
    return files(tmp_path, contents) / "refcoco"


def test_refcoco_has_its_published_splits_and_a_clean_and_a_full_train(refcoco: Path) -> None:
    found = {split: open_source(f"{refcoco}", split=split) for split in ("train", "val", "testA", "testB", "test")}
    assert {split: [name[-5] for name in names(source)] for split, source in found.items()} == {
        "train": ["1"],
        "val": ["3"],
        "testA": ["4"],
        "testB": ["5"],
        "test": ["4", "5"],
    }
    assert boxes(found["val"].example(0)) == [((3, 2, 13, 12), "fox 3", 1), ((3, 2, 13, 12), "animal 3", 1)]
    facts = found["train"].describe()
    assert facts["regions"] == 2 and facts["split_by"] == "refs(unc)" and facts["pool"] == "clean refcoco+"
    assert facts["skipped"] == {
        "reference in an image of val or test": 1,
        "reference to an image or object that is not listed": 1,
    }
    assert len(open_source(f"{refcoco}?pool=full")) == 2
    assert names(open_source(f"{refcoco}?by=google", split="val"))[0].endswith("1.png")
    with pytest.raises(UserError, match=r"no refs\(umd\).p \(it has splits by google, unc\)"):
        open_source(f"{refcoco}?by=umd")
    with pytest.raises(UserError, match="pool is clean or full, not 'dirty'"):
        open_source(f"{refcoco}?pool=dirty")


def test_refcoco_finds_cocos_images_of_2017_too(refcoco: Path) -> None:
    (refcoco.parent / "images" / "train2014").rename(refcoco.parent / "images" / "elsewhere")
    with pytest.raises(UserError, match="give COCO's train2014 as"):
        open_source(f"{refcoco}", split="val")
    files(refcoco.parent, {"train2017/3.png": None})
    assert names(open_source(f"{refcoco}", split="val")) == ["3.png"]


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_plain_values_of_every_pickle_protocol_are_read_without_unpickling(protocol: int) -> None:
    text = "a fox, ü"
    value = [{"a": [1, -2, 3.5, 2**70, True, None], "b": (text, text, (), (1,)), 7: {}}, [[]], [text] * 3, b"" * 0]
    value = value[:-1]
    assert read_plain(pickle.dumps(value, protocol)) == value


class Harmful:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, ("harm",)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (pickle.dumps([Harmful()]), "more than plain values"),
        (pickle.dumps([Harmful()], 0), "more than plain values"),
        (pickle.dumps({(1, 2): 3}), "neither text nor number"),
        (b"\x80\x04]\x94(K\x01K\x02e", "damaged"),
        (b"r\xff\xff\xff\x7f.", "damaged"),  # memo number two thousand million: an index into nothing here
        (b"h\x05.", "damaged"),
        (b"(l(le.", "damaged|."),
        (b"", "damaged"),
    ],
)
def test_a_pickle_of_anything_else_ends_the_reading(
    data: bytes, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if reason != "damaged|.":
        with pytest.raises(NotPlain, match=reason):
            read_plain(data)
    assert list(tmp_path.iterdir()) == []


def test_a_harmful_refcoco_is_one_sentence_and_shared_lists_cannot_multiply(
    refcoco: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = refcoco / "refs(unc).p"
    file.write_bytes(pickle.dumps([Harmful()]))
    with pytest.raises(UserError, match="more than plain values .*; give one in the shape of RefCOCO's"):
        open_source(f"{refcoco}", split="val")
    monkeypatch.setattr(refcoco_module, "MAX_SENTENCES", 1000)
    shared = [{"sent": "x"}] * 100
    file.write_bytes(pickle.dumps([one | {"sentences": shared} for one in references({3: "val"}) * 100]))
    with pytest.raises(UserError, match="over 1,000 sentences"):
        open_source(f"{refcoco}", split="val")


def test_visual_genome_regions_are_found_in_both_halves_of_the_download(tmp_path: Path) -> None:
    def region(x: float, phrase: Any) -> dict[str, Any]:
        return {"region_id": 1, "x": x, "y": 2, "width": 10, "height": 10, "phrase": phrase}

    stored = [
        {"id": 1, "regions": [region(1, "a fox"), region(20, "A fox"), region(3, None), region(float("nan"), "x"), 5]},
        {"id": 2, "regions": [region(1, "red")]},
        {"id": 3, "regions": []},
        {"regions": [region(1, "nowhere")]},
    ]
    files(tmp_path, {"VG_100K/1.jpg": None, "VG_100K_2/2.jpg": None, "region_descriptions.json": stored})
    source = open_source(str(tmp_path))
    assert names(source) == ["VG_100K/1.jpg", "VG_100K_2/2.jpg"]
    assert boxes(source.example(0)) == [((1, 2, 11, 12), "a fox", 2), ((20, 2, 30, 12), "A fox", 2)]
    assert source.skipped == {"image without regions": 1, "image without id": 1}
    assert open_source(f"{tmp_path}/region_descriptions.json").describe()["kind"] == "vg"


ENTITIES = """<annotation><filename>1.jpg</filename><size><width>40</width><height>30</height></size>
<object><name>11</name><name>12</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>11</xmax><ymax>12</ymax></bndbox></object>
<object><name>11</name><bndbox><xmin>20</xmin><ymin>2</ymin><xmax>30</xmax><ymax>12</ymax></bndbox></object>
<object><name>13</name><scene>1</scene><nobndbox>0</nobndbox></object></annotation>"""
SENTENCES = """[/EN#11/people Two people] near [/EN#12/people one] in [/EN#13/scene a street] .
[/EN#11/people Two people] and [/EN#0/notvisual it] [/EN#14/clothing/body a hat] ."""


def test_flickr30k_entities_are_sentences_without_brackets_and_a_region_for_each_box(tmp_path: Path) -> None:
    contents: dict[str, Any] = {f"flickr30k-images/{n}.jpg": None for n in range(1, 6)}
    contents |= {f"Annotations/{n}.xml": ENTITIES for n in range(1, 4)} | {"Annotations/4.xml": BOMB}
    contents |= {f"Sentences/{n}.txt": SENTENCES for n in range(1, 6)}
    contents |= {"train.txt": "1\n4\n5\n", "val.txt": "2\n", "test.txt": "3\n"}
    source = open_source(str(files(tmp_path, contents)))
    assert texts(source.example(0)) == ["Two people near one in a street .", "Two people and it a hat ."]
    assert boxes(source.example(0)) == [
        ((1, 2, 11, 12), "Two people", 2),
        ((20, 2, 30, 12), "Two people", 2),
        ((1, 2, 11, 12), "one", 1),
    ]
    for index, reason in ((1, "xml with a document type"), (2, "xml can't be read")):
        with pytest.raises(BrokenExample, match=reason):
            source.example(index)
    assert [names(open_source(str(tmp_path), split=split)) for split in ("val", "test")] == [["2.jpg"], ["3.jpg"]]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (BOMB, "document type"),
        (b"<!DOCTYPE a SYSTEM 'file:///etc/passwd'><a/>", "document type"),
        (b"<a>" * 1000, "nested over 16 deep"),
        (b"<a><b></a>", "can't be parsed"),
        (b"<?xml version='1.0' encoding='none'?><a/>", "can't be parsed"),
        (b"\xff\xfe\x00", "can't be parsed"),
        (b"", "can't be parsed"),
    ],
)
def test_hostile_xml_is_one_broken_row(data: bytes, reason: str) -> None:
    with pytest.raises(BrokenExample, match=reason):
        parse_xml(data)


def voc(*things: tuple[str, str]) -> str:
    listed = "".join(f"<object><name>{name}</name><bndbox>{edges}</bndbox></object>" for name, edges in things)
    return f"<annotation><size><width>40</width></size>{listed}</annotation>"


def edges(*values: Any) -> str:
    tags = ("xmin", "ymin", "xmax", "ymax")
    return "".join(f"<{tag}>{value}</{tag}>" for tag, value in zip(tags, values, strict=True))


def test_voc_counts_pixels_from_one_and_has_its_own_splits(tmp_path: Path) -> None:
    dog = voc(("dog", edges(1, 1, 40, 30)), ("dog", edges(3.0, 3, 9, 9)), ("cat", edges("nan", 1, 2, 3)), ("cow", ""))
    contents = {f"JPEGImages/{n}.jpg": None for n in range(1, 4)} | {f"Annotations/{n}.xml": dog for n in (1, 2, 3)}
    contents |= {"ImageSets/Main/train.txt": "1\n", "ImageSets/Main/val.txt": "2\n"}
    source = open_source(str(files(tmp_path / "VOC2012", contents)))
    assert boxes(source.example(0)) == [((0, 0, 40, 30), "dog", 2), ((2, 2, 9, 9), "dog", 2)]
    assert names(source) == ["1.jpg"] and names(open_source(f"{tmp_path}/VOC2012", split="val")) == ["2.jpg"]
    beside = files(tmp_path / "beside", {"train/a.jpg": None, "train/a.xml": dog, "train/b.jpg": None})
    assert names(open_source(f"voc:{beside}")) == ["train/a.jpg"]
    with pytest.raises(UserError, match="no image with an XML file"):
        open_source(f"voc:{files(tmp_path / 'none', {'a.jpg': None})}")


def test_yolo_reads_boxes_and_outlines_of_its_label_files(tmp_path: Path) -> None:
    lines = "0 0.25 0.5 0.5 1.0\n1 0 0 0.5 0 0.5 0.5\n0 0.5 0.5 0.1 0.1 0.9\n7 0.5 0.5 0.1 0.1\n0 nan 0 1 1\nx\n0 1 2\n"
    contents = {"images/train/1.png": None, "labels/train/1.txt": lines, "images/val/2.png": None}
    contents |= {"labels/val/2.txt": lines, "images/train/3.png": None}
    contents |= {"data.yaml": "path: .\ntrain: images/train\nval: images/val\nnames: {0: fox, 1: cow}\n"}
    source = open_source(str(files(tmp_path, contents)))
    assert boxes(source.example(0)) == [
        ((0, 0, 20, 30), "fox", 4),
        ((0, 0, 20, 15), "cow", 1),
        (pytest.approx((18, 13.5, 22, 16.5)), "fox", 4),
    ]
    with pytest.raises(BrokenExample, match="no caption, region"):
        source.example(1)
    assert names(open_source(f"{tmp_path}/data.yaml", split="val")) == ["images/val/2.png"]


def test_yolo_of_roboflow_lists_and_poses_are_read_and_paths_outside_are_refused(tmp_path: Path) -> None:
    contents: dict[str, Any] = {"train/images/1.png": None, "train/labels/1.txt": "0 0.5 0.5 1 1 0.1 0.2 2\n"}
    contents |= {"data.yaml": "train: ../train/images\nnames: [fox]\nkpt_shape: [1, 3]\n"}
    assert boxes(open_source(str(files(tmp_path / "a", contents))).example(0)) == [((0, 0, 40, 30), "fox", 1)]
    contents |= {"list.txt": "./train/images/1.png\n../../secret.png\n", "data.yaml": "train: list.txt\nnames: [fox]\n"}
    contents |= {"train/labels/1.txt": "0 0.5 0.5 1 1"}
    source = open_source(str(files(tmp_path / "b", contents)))
    assert len(source.example(0).regions) == 1
    with pytest.raises(BrokenExample, match="path leaves the folder"):
        source.example(1)
    for text, message in (
        ("train: /etc\nnames: [a]", "is not a folder or list below"),
        ("a: &a [b, b]\nnames: *a", "no image in the folders"),
        ("!!python/object/apply:os.mkdir [harm]", "can't be read"),
        ("names: {}", "no `names` of classes"),
        ("- 1", "holds no keys"),
    ):
        (tmp_path / "b" / "data.yaml").write_text(text)
        with pytest.raises(UserError, match=message):
            open_source(str(tmp_path / "b"))


def test_open_images_boxes_are_shares_of_the_image_and_groups_are_left_out(tmp_path: Path) -> None:
    header = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsGroupOf\n"
    rows = [
        "b,x,/m/1,1,0,0.5,0,1,0,0",
        "a,x,/m/2,1,0.25,0.5,0,1,0,0",
        "b,x,/m/1,1,0.5,1,0,1,0,1",
        "b,x,/m/9,1,0,0.5,0,1,0,0",
        "b,x,/m/1,1,nan,0.5,zero,1,0,0",
        "too,few",
    ]
    contents: dict[str, Any] = {f"{part}/{n}.jpg": None for part in ("train", "validation") for n in "ab"}
    contents |= {f"oidv6-{part}-annotations-bbox.csv": header + "\n".join(rows) for part in ("train", "validation")}
    contents |= {"oidv7-class-descriptions-boxable.csv": '/m/1,Fox\n/m/2,"Cow, bull"\n'}
    root = files(tmp_path, contents)
    source = open_source(
        f"{root}/oidv6-{{train,validation}}-annotations-bbox.csv".replace(f"{root}/", f"openimages:{root}/")
    )
    assert names(source) == ["b.jpg", "a.jpg"]
    assert boxes(source.example(0)) == [((0, 0, 20, 30), "Fox", 1)]
    assert boxes(source.example(1)) == [((10, 0, 20, 30), "Cow, bull", 1)]
    assert source.skipped == {"region: group": 1, "line has another number of columns than the header": 1}
    held = open_source(f"{root}/oidv6-validation-annotations-bbox.csv", split="val")
    assert "validation" in held.group(0) and held.describe()["boxes"] == 4
    (root / "oidv7-class-descriptions-boxable.csv").unlink()
    with pytest.raises(UserError, match=r"no class-descriptions-boxable.csv; give the file as .*\?classes=FILE"):
        open_source(f"{root}/oidv6-train-annotations-bbox.csv")


def test_localized_narratives_are_the_captions_of_each_image(tmp_path: Path) -> None:
    def line(image: Any, caption: Any, data: str = "mscoco_train2017") -> str:
        facts = {"dataset_id": data, "image_id": image, "annotator_id": 1, "caption": caption, "traces": [[{"x": 0}]]}
        return json.dumps(facts)

    lines = [line("7", "one"), line("8", "a"), line("7", "two"), line(9, 5), line(None, "x"), "{", "[]"]
    contents: dict[str, Any] = {f"train2017/00000000000{n}.jpg": None for n in (7, 8)}
    contents |= {"ade_train_00000001.jpg": None, "coco_train_narratives.jsonl": "\n".join(lines)}
    root = files(tmp_path, contents)
    source = open_source(f"{root}/coco_train_narratives.jsonl")
    assert [texts(source.example(index)) for index in range(2)] == [["one", "two"], ["a"]]
    assert source.skipped == {
        "line without caption": 2,
        "line without image_id or dataset_id": 1,
        "line is not JSON": 1,
    }
    files(root, {"ade20k_train.jsonl": line("ade_train_00000001", "a room", "ADE20k_train")})
    assert names(open_source(f"{root}/ade20k_train.jsonl")) == ["ade_train_00000001.jpg"]


def test_large_annotations_are_parsed_once_and_mapped_from_then_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records_module, "SMALL", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    stored = [{"id": n, "regions": [{"x": 1, "y": 1, "width": 5, "height": 5, "phrase": "a"}]} for n in range(3)]
    files(tmp_path, {f"VG_100K/{n}.jpg": None for n in range(3)} | {"region_descriptions.json": [*stored, {}]})
    parsed: list[Any] = []
    read_json = records_module.read_json
    monkeypatch.setattr("opensiglip.data.sources.visual_genome.read_json", lambda *a: parsed.append(a) or read_json(*a))
    for _ in range(2):
        source = pickle.loads(pickle.dumps(open_source(str(tmp_path))))  # noqa: S301 - ours, as to a worker process
        assert len(source.example(0).regions) == 1 and source.skipped == {"image without regions": 1}
    assert len(parsed) == 1
    (made,) = (tmp_path / "cache" / "opensiglip" / "records").iterdir()
    made.write_bytes(made.read_bytes()[:200])
    assert len(open_source(str(tmp_path))) == 3 and len(parsed) == 2
    files(tmp_path, {"region_descriptions.json": stored[:2]})
    assert len(open_source(str(tmp_path))) == 2 and len(parsed) == 3


def test_imagefolders_metadata_parquet_has_columns_splits_and_groups(tmp_path: Path) -> None:
    rows = {
        "file_name": ["0.png", "0.png", "1.png", "../x.png"],
        "caption": ["a", "b", "c", "d"],
        "split": ["train", "train", "validation", "train"],
        "objects": [{"bbox": [[1.0, 2.0, 10.0, 10.0]], "categories": ["fox"]}] * 4,
    }
    files(tmp_path, {"0.png": None, "1.png": None})
    pq.write_table(pa.table(rows), tmp_path / "metadata.parquet")
    source = open_source(str(tmp_path))
    assert source.group(0) == source.group(1) and names(open_source(str(tmp_path), split="val")) == ["1.png"]
    assert texts(source.example(0)) == ["a"] and boxes(source.example(0)) == [((1, 2, 11, 12), "fox", 1)]
    with pytest.raises(BrokenExample, match="path leaves the folder"):
        source.example(2)


@pytest.mark.parametrize("form", ["dict", "list"])
def test_objects_of_detection_sets_have_the_names_of_their_numbered_categories(tmp_path: Path, form: str) -> None:
    label, box = ClassLabel(names=["fox", "cow"]), List(Value("float32"), length=4)
    feature = {"bbox": box, "category": label, "area": Value("int64")}
    listed = {"bbox": List(box), "category": List(label), "area": List(Value("int64"))}
    objects: Any = [
        {"bbox": [1, 2, 10, 10], "category": 1, "area": 100},
        {"bbox": [3, 3, 4, 4], "category": 0, "area": 9},
    ]
    if form == "dict":
        objects = {key: [one[key] for one in objects] for key in feature}
    features = Features({"image": ImageColumn(), "objects": List(feature) if form == "list" else listed})
    data = Dataset.from_dict({"image": [{"bytes": png(), "path": None}], "objects": [objects]}, features=features)
    data.to_parquet(tmp_path / "a.parquet")
    for source in (open_source(f"{tmp_path}/a.parquet"), open_source(data)):
        assert boxes(source.example(0)) == [((1, 2, 11, 12), "cow", 1), ((3, 3, 7, 7), "fox", 1)]


def test_numbered_categories_without_names_take_those_of_a_file(tmp_path: Path) -> None:
    rows = {"image": [png()], "objects": [{"bbox": [[1.0, 2.0, 11.0, 12.0]], "category": [1]}]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    files(tmp_path, {"names.txt": "fox\ncow\n"})
    source = open_source(f"{tmp_path}/a.parquet?classes={tmp_path}/names.txt:box_format=xyxy")
    assert boxes(source.example(0)) == [((1, 2, 11, 12), "cow", 1)]


@pytest.mark.parametrize(
    "kind", ["coco", "refcoco", "vg", "flickr30k_entities", "openimages", "narratives", "yolo", "voc"]
)
def test_what_is_not_there_is_one_sentence_for_every_kind(tmp_path: Path, kind: str) -> None:
    for path in (tmp_path, tmp_path / "gone"):
        with pytest.raises(UserError) as error:
            open_source(f"{kind}:{path}")
        assert "\n" not in str(error.value)


def test_links_that_lead_out_of_the_images_are_refused_for_every_kind(tmp_path: Path, refcoco: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png())
    image = refcoco.parent / "images" / "train2014" / "COCO_train2014_3.png"
    source = open_source(f"{refcoco}", split="val")
    image.unlink()
    image.symlink_to(tmp_path / "secret.png")
    with pytest.raises(BrokenExample, match="path leaves the folder"):
        pickle.loads(pickle.dumps(source)).example(0)  # noqa: S301 - a copy that has looked at nothing yet
