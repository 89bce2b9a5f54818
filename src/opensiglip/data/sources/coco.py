"""COCO's captions, instances and panoptic files, and LVIS's: {"images": [...], "annotations": [...], ...}."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from opensiglip.data.sources.records import Annotated, Record, corners, find_root, first_name, read_json, read_records
from opensiglip.data.sources.shards import find_shards
from opensiglip.data.sources.spec import Spec
from opensiglip.data.sources.split import split_in
from opensiglip.errors import EmptySplit, UserError

BEGINS = re.compile(rb'\s*\{\s*"(?:info|licenses|images|annotations|categories|type)"\s*:')
SHAPE = "COCO's shape"


class Coco(Annotated):
    """Images with all their captions, and each object that is no crowd as a region and, with polygons, a mask.

    Several files, as `{captions,instances}_{train,val}2017.json`, are joined by the images' ids. A file named after a
    split is of that split; else one image in fifty is val. Crowds are left out and counted.
    """

    def __init__(self, spec: Spec, *, split: str = "train", languages: Sequence[str] | None = None) -> None:
        """Reads the files of a split. Raises UserError where they are of another shape, or images are not found."""
        files = [file.expanduser().resolve() for file in find_shards(spec, ".json")]
        splits = [split_in(file) for file in files]
        own = split if any(splits) else None
        if own is not None:
            files = [file for file, name in zip(files, splits, strict=True) if (name or "train") == split]
        if not files:
            raise EmptySplit(f"{spec.name} has no row in split {split!r}; choose another.")
        records = read_records("coco", files, [own or ""], partial(parse, files, own))
        root = find_root(spec, first_name(records), places(files[0]))
        super().__init__(spec, split, languages, records, root, "lvis" if spec.kind == "lvis" else "coco")


@dataclass
class Read:
    """What files say: images by id, annotations of each, categories by number."""

    images: dict[Any, dict[str, Any]] = field(default_factory=dict)
    annotations: dict[Any, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    categories: dict[Any, str] = field(default_factory=dict)


def is_coco(file: Path) -> bool:
    """Does a JSON file begin as COCO's do?"""
    with file.open("rb") as opened:
        return BEGINS.match(opened.read(4096)) is not None


def parse(files: Sequence[Path], split: str | None, skipped: Counter[str]) -> Iterator[Record]:
    """A record for each image that has an annotation, in the files' order. Raises UserError."""
    read = Read()
    for file in files:
        add(read, read_json(file, SHAPE), file, skipped)
    for number, image in read.images.items():
        if own := read.annotations.pop(number, None):
            size = {key: image[key] for key in ("width", "height") if image.get(key) is not None}
            yield Record(file_name(image), split, size | annotated(own, read.categories, image, skipped))
    if read.annotations:
        skipped["annotation of an image that is not listed"] += sum(map(len, read.annotations.values()))


def add(read: Read, stored: Any, file: Path, skipped: Counter[str]) -> None:
    """Add a file's content. Raises UserError."""
    found = stored if isinstance(stored, dict) else {}
    images, annotations, categories = (found.get(name) for name in ("images", "annotations", "categories"))
    if not isinstance(images, list) or not isinstance(annotations, list):
        raise UserError(f"{file} has no lists 'images' and 'annotations'; give a JSON file in {SHAPE}.")
    for one in categories if isinstance(categories, list) else []:
        if isinstance(one, dict) and is_id(one.get("id")) and isinstance(one.get("name"), str):
            read.categories[one["id"]] = one["name"]
    for image in images:
        if isinstance(image, dict) and is_id(image.get("id")) and file_name(image):
            read.images.setdefault(image["id"], image)
        else:
            skipped["image without id or file_name"] += 1
    for one in annotations:
        if isinstance(one, dict) and is_id(one.get("image_id")):
            read.annotations[one["image_id"]].append(one)
        else:
            skipped["annotation without image_id"] += 1


def file_name(image: dict[str, Any]) -> str:
    """Where an image lies: LVIS says only where it was fetched, which ends as `train2017/000000391895.jpg`."""
    if isinstance(image.get("file_name"), str):
        return str(image["file_name"])
    url = image.get("coco_url")
    return "/".join(PurePosixPath(url).parts[-2:]) if isinstance(url, str) else ""


def annotated(
    annotations: list[dict[str, Any]], categories: dict[Any, str], image: dict[str, Any], skipped: Counter[str]
) -> dict[str, Any]:
    """Captions, regions and masks of an image."""
    captions = [one["caption"] for one in annotations if isinstance(one.get("caption"), str)]
    if spoilt := sum(1 for one in annotations if "caption" in one) - len(captions):
        skipped["caption is not text"] += spoilt
    things = [part for one in annotations for part in parts_of(one)]
    crowds = sum(1 for one in things if one.get("iscrowd"))
    if crowds:
        skipped["region: crowd"] += crowds
    things = [one for one in things if not one.get("iscrowd")]
    panoptic = any("segments_info" in one for one in annotations)
    names = [category(one.get("category_id"), categories, image, panoptic=panoptic) for one in things]
    counts = Counter(names)
    open_ended = image.get("not_exhaustive_category_ids") or ()  # LVIS: there are more than have boxes
    regions, masks = [], []
    for one, name in zip(things, names, strict=True):
        more = isinstance(open_ended, list) and one.get("category_id") in open_ended
        regions.append({"bbox": corners(one["bbox"]), "phrase": name, "n_boxes": max(counts[name], 2 if more else 1)})
        if name is not None and isinstance(one.get("segmentation"), list):
            masks.append({"label": name, "polygons": one["segmentation"]})
    found = {"captions": captions, "regions": regions, "masks": masks}
    return {column: value for column, value in found.items() if value}


def parts_of(annotation: dict[str, Any]) -> list[dict[str, Any]]:
    """The boxes of an annotation: itself, or a panoptic one's segments."""
    segments = annotation.get("segments_info")
    parts = segments if isinstance(segments, list) else [annotation]
    return [part for part in parts if isinstance(part, dict) and "bbox" in part]


def category(number: Any, categories: dict[Any, str], image: dict[str, Any], *, panoptic: bool) -> str | None:
    """A category as a phrase: LVIS's `baseball_bat` and panoptic's `floor-other-merged` are written for programs."""
    name = categories.get(number) if is_id(number) else None
    if name is None:
        return None
    if "neg_category_ids" in image:
        return name.replace("_", " ")
    if panoptic:
        for ending in ("-merged", "-other", "-stuff"):
            name = name.removesuffix(ending)
        return name.replace("-", " ")
    return name


def is_id(value: Any) -> bool:
    """Can it name an image or category?"""
    return isinstance(value, int | str)


def places(file: Path) -> list[Path]:
    """Where images lie: beside the file or beside its folder, under the names that COCO's downloads have."""
    split = file.stem.rpartition("_")[2]  # captions_val2017 -> val2017
    above = file.parent.parent
    names = [above / split, file.parent / split, above / "images" / split, file.parent / "images", file.parent]
    return [*names, above, above / "images", above / "coco", file.parent / "coco"]
