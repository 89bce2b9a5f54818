"""COCO's captions and instances files: {"images": [...], "annotations": [...], "categories": [...]}."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opensiglip.data.example import BrokenExample
from opensiglip.data.sources.columns import Columns
from opensiglip.data.sources.files import Files
from opensiglip.data.sources.spec import Spec
from opensiglip.data.sources.split import split_in
from opensiglip.data.sources.table import Listed, need_rows, relative
from opensiglip.errors import UserError

BEGINS = re.compile(rb'\s*\{\s*"(?:info|licenses|images|annotations|categories|type)"\s*:')


class Coco(Listed):
    """Images with all their captions, and each object that is no crowd as a region and, with polygons, a mask.

    A file named after a split is of that split; else one image in fifty is val. Crowds are left out and
    counted.
    """

    kind = "coco"

    def __init__(self, spec: Spec, *, split: str = "train", languages: Sequence[str] | None = None) -> None:
        """Reads the whole file. Raises UserError where it is of another shape, or its images are not found."""
        file = Path(spec.path).expanduser().resolve()
        images, annotations, categories = read_coco(file)
        records, dropped = join(images, annotations, categories)
        need_rows(spec, records, "image with an annotation")
        own = split_in(file)
        root = Path(spec.options["root"]) if "root" in spec.options else find_root(file, records)
        columns = Columns("file_name", ("captions",), None, None, ("regions", "masks", "width", "height"))
        super().__init__(spec, split, languages, records, columns, root, None if own is None else [own] * len(records))
        self.skipped.update(dropped)


def is_coco(file: Path) -> bool:
    """Does a JSON file begin as COCO's do?"""
    with file.open("rb") as opened:
        return BEGINS.match(opened.read(4096)) is not None


def read_coco(file: Path) -> tuple[list[Any], list[Any], dict[Any, str]]:
    """Images, annotations, and the names of categories by number. Raises UserError."""
    try:
        stored = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} can't be read ({error}); give a JSON file in COCO's shape.") from None
    found = stored if isinstance(stored, dict) else {}
    images, annotations = found.get("images", []), found.get("annotations", [])
    if not (isinstance(stored, dict) and isinstance(images, list) and isinstance(annotations, list)):
        raise UserError(f"{file} has no lists 'images' and 'annotations'; give a JSON file in COCO's shape.")
    categories = stored.get("categories", [])
    named = [one for one in categories if isinstance(one, dict)] if isinstance(categories, list) else []
    names = {one["id"]: one["name"] for one in named if is_id(one.get("id")) and isinstance(one.get("name"), str)}
    return images, annotations, names


def join(
    images: list[Any], annotations: list[Any], categories: dict[Any, str]
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """A row of metadata.jsonl for each image that has an annotation, in the file's order; and what was left out."""
    of_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    dropped = Counter[str]()
    for one in annotations:
        if isinstance(one, dict) and is_id(one.get("image_id")):
            of_image[one["image_id"]].append(one)
        else:
            dropped["annotation without image_id"] += 1
    records = []
    for image in images:
        if not isinstance(image, dict) or not is_id(image.get("id")) or not isinstance(image.get("file_name"), str):
            dropped["image without id or file_name"] += 1
        elif own := of_image.pop(image["id"], None):
            records.append(
                {key: image.get(key) for key in ("file_name", "width", "height")} | annotated(own, categories)
            )
            dropped.update("region: crowd" for one in own if one.get("iscrowd"))
    if of_image:
        dropped["annotation of an image that is not listed"] += sum(map(len, of_image.values()))
    return records, dropped


def annotated(annotations: list[dict[str, Any]], categories: dict[Any, str]) -> dict[str, Any]:
    """Captions, regions and masks of an image."""
    captions = [one["caption"] for one in annotations if "caption" in one]
    things = [one for one in annotations if "bbox" in one and not one.get("iscrowd")]
    names = [categories.get(one["category_id"]) if is_id(one.get("category_id")) else None for one in things]
    counts = Counter(names)
    regions, masks = [], []
    for one, name in zip(things, names, strict=True):
        regions.append({"bbox": corners(one["bbox"]), "phrase": name, "n_boxes": counts[name]})
        if name is not None and isinstance(one.get("segmentation"), list):
            masks.append({"label": name, "polygons": one["segmentation"]})
    found = {"captions": captions, "regions": regions, "masks": masks}
    return {column: value for column, value in found.items() if value}


def corners(box: Any) -> Any:
    """COCO's x, y, width, height as x1, y1, x2, y2; what is no box stays as it is, for the row checker to refuse."""
    try:
        left, top, width, height = box
        return [left, top, left + width, top + height]
    except (TypeError, ValueError):
        return box


def is_id(value: Any) -> bool:
    """Can it name an image or category?"""
    return isinstance(value, int | str)


def find_root(file: Path, records: list[dict[str, Any]]) -> Path:
    """The folder of the images: beside the file or beside its folder, under the names that COCO's downloads have.

    Raises UserError where the first image is in none of them.
    """
    split = file.stem.rpartition("_")[2]  # captions_val2017 -> val2017
    above = file.parent.parent
    for root in (above / split, file.parent / split, above / "images" / split, file.parent / "images", file.parent):
        try:
            Files(root).find(relative(records[0]["file_name"], root))
        except BrokenExample:
            continue
        return root
    raise UserError(f"{file}: image {records[0]['file_name']} is not found; give its folder as {file}?root=FOLDER.")
