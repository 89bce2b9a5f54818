"""Damaged annotation files of every form, through their readers: a UserError or a counted row, and nothing else.

make torture COUNT=10000 tries so many of each; make test a few.
"""

import io
import json
import pickle
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from opensiglip.data.example import BrokenExample
from opensiglip.data.sources.plain_pickle import NotPlain, read_plain
from opensiglip.data.sources.registry import open_source
from opensiglip.data.sources.xml import parse_xml
from opensiglip.errors import UserError

FEW = 25
WORDS = [
    b"NaN",
    b"-1",
    b"1e400",
    b"null",
    b"[]",
    b"{}",
    b'"\\ud800"',
    b"\xff\xfe",
    b"../x",
    b"\0",
    b"<!DOCTYPE a>",
    b"[" * 99,
]
BOXES = [{"id": 10, "image_id": 1, "category_id": 7, "bbox": [1, 2, 9, 9], "segmentation": [[1, 1, 9, 1, 9, 9]]}]


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (24, 16), (9, 60, 60)).save(file, "PNG")
    return file.getvalue()


def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as opened:
        for name, data in (("0.png", png()), ("0.txt", b"a"), ("0.json", b'{"caption": "b", "regions": [], "x": 1}')):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            opened.addfile(info, io.BytesIO(data))
    return file.getvalue()


def parquet() -> bytes:
    file = io.BytesIO()
    objects = [{"bbox": [[1.0, 2.0, 9.0, 9.0]], "category": [0]}]
    pq.write_table(pa.table({"image": [png()], "caption": ["a"], "objects": objects}), file)
    return file.getvalue()


def arrow() -> bytes:
    table = pq.read_table(io.BytesIO(parquet()))
    out = io.BytesIO()
    with pa.ipc.new_stream(out, table.schema) as stream:
        stream.write_table(table)
    return out.getvalue()


COCO = {
    "images": [{"id": 1, "file_name": "1.png", "width": 24, "height": 16, "coco_url": "http://a/b/1.png"}],
    "annotations": [*BOXES, {"id": 2, "image_id": 1, "caption": "a fox"}, {"image_id": 1, "segments_info": BOXES}],
    "categories": [{"id": 7, "name": "fox"}],
}
REFS = [{"ann_id": 10, "image_id": 1, "split": "train", "sentences": [{"sent": "a fox"}]}]
VG = [{"id": 1, "regions": [{"x": 1, "y": 2, "width": 9, "height": 9, "phrase": "a fox"}]}]
BOX = b"<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
XML = b"<annotation><object><name>1</name>" + BOX + b"</object></annotation>"
NARRATIVE = {"dataset_id": "flickr30k", "image_id": "1", "annotator_id": 1, "caption": "a fox", "traces": [[{"x": 1}]]}

FORMS: dict[str, tuple[str, dict[str, bytes]]] = {  # the file that is damaged, and what lies beside it
    "coco": ("a.json", {"a.json": json.dumps(COCO).encode(), "1.png": png()}),
    "refcoco": (
        "refs(unc).p",
        {"refs(unc).p": pickle.dumps(REFS, 2), "instances.json": json.dumps(COCO).encode(), "images/1.png": png()},
    ),
    "vg": ("region_descriptions.json", {"region_descriptions.json": json.dumps(VG).encode(), "VG_100K/1.jpg": png()}),
    "flickr30k_entities": (
        "Annotations/1.xml",
        {"Annotations/1.xml": XML, "Sentences/1.txt": b"[/EN#1/people a man] .", "images/1.jpg": png()},
    ),
    "voc": ("Annotations/1.xml", {"Annotations/1.xml": XML, "JPEGImages/1.jpg": png()}),
    "yolo": ("labels/1.txt", {"labels/1.txt": b"0 0.5 0.5 1 1\n0 0 0 1 0 1 1\n", "images/1.png": png()}),
    "yolo yaml": ("data.yaml", {"labels/1.txt": b"0 0.5 0.5 1 1\n", "images/1.png": png()}),
    "openimages": (
        "boxes.csv",
        {
            "boxes.csv": b"ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsGroupOf\n1,a,/m/1,1,0,1,0,1,0\n",
            "class-descriptions-boxable.csv": b"/m/1,Fox\n",
            "1.jpg": png(),
        },
    ),
    "narratives": ("a.jsonl", {"a.jsonl": json.dumps(NARRATIVE).encode() + b"\n", "1.jpg": png()}),
    "csv": ("a.csv", {"a.csv": b"filepath,title,split\n1.png,a,train\n1.png,b,train\n", "1.png": png()}),
    "parquet": ("a.parquet", {"a.parquet": parquet()}),
    "arrow": ("a.arrow", {"a.arrow": arrow()}),
    "tar": ("a.tar", {"a.tar": tar()}),
    "folder": ("metadata.jsonl", {"metadata.jsonl": b'{"file_name": "1.png", "caption": "a"}\n', "1.png": png()}),
}
OF_FOLDERS = ("refcoco", "vg", "flickr30k_entities", "voc", "yolo", "folder")
YAML = b"train: images\nnames: {0: fox}\n"


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The bytes with one to four pieces overwritten, removed, doubled or cut off."""
    raw = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(raw) + 1)
        length = rng.choice((1, 1, 2, 4, 20))
        match rng.randrange(5):
            case 0:
                raw[at : at + length] = rng.randbytes(length)
            case 1:
                raw[at : at + length] = rng.choice(WORDS)
            case 2:
                del raw[at : at + length]
            case 3:
                raw[at:at] = raw[at : at + 40]
            case 4:
                raw = raw[:at] if rng.random() < 0.2 else raw
    return bytes(raw)


@pytest.mark.filterwarnings("ignore")  # of decoders
@pytest.mark.parametrize("form", FORMS)
def test_no_damage_to_a_file_is_more_than_a_sentence_or_a_counted_row(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torture_count: Callable[[int], int]
) -> None:
    target, contents = FORMS[form]
    contents = contents | ({"data.yaml": YAML} if form.startswith("yolo") else {})
    root, kind, rng = tmp_path / "in", form.split()[0], random.Random(form)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, data in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    spec = f"{kind}:{root}" if kind in OF_FOLDERS else f"{root}/{target}"
    assert open_source(spec).example(0).name, "whole, it is read"
    outcomes = {"read": 0, "broken": 0, "refused": 0}
    for _ in range(torture_count(FEW)):
        (root / target).write_bytes(damaged(contents[target], rng))
        try:
            source = open_source(spec)
        except UserError as error:
            assert "\n" not in str(error)
            outcomes["refused"] += 1
            continue
        for index in range(min(len(source), 3)):
            try:
                source.example(index)
            except BrokenExample:
                outcomes["broken"] += 1
            else:
                outcomes["read"] += 1
    print(form, outcomes)
    assert outcomes["refused"] + outcomes["broken"] > 0 and {p.name for p in tmp_path.iterdir()} <= {"in", "cache"}


@pytest.mark.parametrize(("read", "data"), [(read_plain, pickle.dumps(REFS, 0)), (parse_xml, XML)])
def test_no_damage_to_a_pickle_or_xml_does_more_than_end_it(
    read: Callable[[bytes], Any], data: bytes, torture_count: Callable[[int], int]
) -> None:
    rng, ended = random.Random(1), 0
    for _ in range(torture_count(10 * FEW)):
        try:
            read(damaged(data, rng))
        except (NotPlain, BrokenExample):
            ended += 1
    assert ended
