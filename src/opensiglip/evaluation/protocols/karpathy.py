"""COCO and Flickr30k: retrieval on the test images of Karpathy's splits, with the first five captions of each."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opensiglip.data.sources.records import read_json
from opensiglip.errors import UserError
from opensiglip.evaluation.benchmarks.retrieval import retrieval
from opensiglip.evaluation.protocols.protocol import How, Judged, find_file, judge_source, listed
from opensiglip.inference.predictor import Predictor

CAPTIONS = 5
SHAPE = "the shape of Karpathy's dataset_coco.json"
SPLITS = (
    "Karpathy's splits are in caption_datasets.zip of https://cs.stanford.edu/people/karpathy/deepimagesent/, the "
    "images are {}"
)
COCO = SPLITS.format("COCO's val2014 of https://cocodataset.org")
FLICKR = SPLITS.format("asked for at https://shannon.cs.illinois.edu/DenotationGraph/")


def coco_5k(model: Predictor, folder: Path, how: How) -> dict[str, Judged]:
    """5,000 images of COCO's val2014."""
    places = [folder, folder / "images", folder / "coco", folder / "images" / "mscoco" / "images"]
    return _judge(model, folder, "dataset_coco.json", places, COCO, how)


def flickr30k(model: Predictor, folder: Path, how: How) -> dict[str, Judged]:
    """1,000 images of Flickr30k."""
    names = ("flickr30k-images", "flickr30k_images", "images", "Images", "")
    return _judge(model, folder, "dataset_flickr30k.json", [folder / name for name in names], FLICKR, how)


def _judge(model: Predictor, folder: Path, name: str, places: list[Path], download: str, how: How) -> dict[str, Judged]:
    file = find_file(folder, [name, f"caption_datasets/{name}", f"annotations/{name}"], download)
    source = listed(str(folder), list(rows(file)), places, download)
    return {"retrieval": judge_source(model, source, retrieval, how, tokens=False)}


def rows(file: Path) -> Iterator[dict[str, Any]]:
    """The test images as rows of metadata.jsonl. Raises UserError."""
    stored = read_json(file, SHAPE)
    images = stored.get("images") if isinstance(stored, dict) else None
    if not isinstance(images, list):
        raise UserError(f"{file} has no list 'images'; give a JSON file in {SHAPE}.")
    for image in images:
        if not isinstance(image, dict) or image.get("split") != "test":
            continue
        sentences = image.get("sentences")
        texts = [one.get("raw") for one in sentences if isinstance(one, dict)] if isinstance(sentences, list) else []
        where = [part for part in (image.get("filepath"), image.get("filename")) if isinstance(part, str) and part]
        yield {"file_name": "/".join(where), "captions": texts[:CAPTIONS]}
