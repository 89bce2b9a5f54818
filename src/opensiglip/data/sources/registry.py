"""Open the source that the user names with `--data`."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from opensiglip.data.example import Source
from opensiglip.data.sources.box_layout import BoxLayout
from opensiglip.data.sources.cleaned import Cleaned
from opensiglip.data.sources.coco import Coco, is_coco
from opensiglip.data.sources.csv import Csv
from opensiglip.data.sources.dataset import Tabled
from opensiglip.data.sources.flickr30k import Flickr30kEntities
from opensiglip.data.sources.folder import Folder
from opensiglip.data.sources.image_folder import ClassFolder, ImageFolder, recognise_images
from opensiglip.data.sources.metadata_parquet import MetadataParquet
from opensiglip.data.sources.narratives import Narratives, is_narratives
from opensiglip.data.sources.openimages import OpenImages, is_openimages
from opensiglip.data.sources.parquet import Parquet
from opensiglip.data.sources.python import open_object, spec_of
from opensiglip.data.sources.refcoco import RefCoco
from opensiglip.data.sources.spec import BOX_FORMAT, CACHE_GB, Spec, parse_spec, split_weight
from opensiglip.data.sources.sugarcrepe import Pairs
from opensiglip.data.sources.tar import Tars
from opensiglip.data.sources.url import is_remote
from opensiglip.data.sources.visual_genome import VisualGenome
from opensiglip.data.sources.voc import Voc
from opensiglip.data.sources.yolo import Yolo
from opensiglip.errors import EmptySplit, UserError


def open_source(
    spec: Any,
    *,
    split: str = "train",
    languages: Sequence[str] | None = None,
    pixels: int = 64,
    cache_gb: float = CACHE_GB,
) -> Source:
    """Open the source of a spec (`sources.spec`): `scenes` drawn at `pixels` a side, or data in a format of `KINDS`,
    named or recognised; or an object with `len` and rows: a torch data set, one of `datasets`, a list.

    `languages`: None or ["all"] for all it has. `cache_gb`: disk cache of this node for remote shards. Raises
    UserError if the source does not exist or has no such split or texts.
    """
    spec = spec_of(spec)
    name, weight = (spec, None) if Path(spec).expanduser().exists() else split_weight(spec)
    source = _open(name, split, languages, pixels, cache_gb)
    source.weight = weight
    return source


def splits_of(spec: str) -> dict[str, Source]:
    """The splits of a source. Raises UserError if it has none."""
    found: dict[str, Source] = {}
    missing: EmptySplit | None = None
    for split in ("train", "val", "test"):
        try:
            found[split] = open_source(spec, split=split)
        except EmptySplit as error:
            missing = missing or error
    if not found:
        raise UserError(str(missing))
    return found


def _open(name: str, split: str, languages: Sequence[str] | None, pixels: int, cache_gb: float) -> Source:
    if name == "scenes" or name.startswith("scenes:"):
        from opensiglip.data.scenes.source import open_scenes  # a folder does without the drawings and what draws them

        return open_scenes(name, split=split, languages=languages, pixels=pixels)
    spec = parse_spec(name, tuple(KINDS), cache_gb)
    kind = spec.kind or recognise(spec)
    if kind is None:
        raise UserError(
            f"no such source: {name}; give 'scenes', a folder with metadata.jsonl, or KIND:PATH with KIND among "
            f"{', '.join(KINDS)}."
        )
    if is_remote(spec.path) and kind not in ("tar", "parquet"):
        raise UserError(f"--data {name}: only tars and parquet files are read where they lie; copy the others here.")
    source = KINDS[kind](spec, split=split, languages=languages)
    clean = spec.options.get("clean")
    if clean not in (None, "alt-text"):
        raise UserError(f"--data {name}: clean={clean} is unknown; give clean=alt-text.")
    return Cleaned(source) if clean else source


def _folder(spec: Spec, *, split: str, languages: Sequence[str] | None) -> Source:
    return Folder(spec.name, split=split, languages=languages, layout=spec.layout, folder=spec.path)


def _pairs(spec: Spec, *, split: str, languages: Sequence[str] | None) -> Source:
    return Pairs(spec.path, split=split, languages=languages)


KINDS: dict[str, Callable[..., Source]] = {
    "folder": _folder,
    "tar": Tars,
    "parquet": Parquet,
    "csv": Csv,
    "tsv": Csv,
    "metadata": MetadataParquet,
    "images": ImageFolder,
    "classes": ClassFolder,
    "coco": Coco,
    "lvis": Coco,
    "refcoco": RefCoco,
    "vg": VisualGenome,
    "flickr30k_entities": Flickr30kEntities,
    "openimages": OpenImages,
    "narratives": Narratives,
    "yolo": Yolo,
    "voc": Voc,
    "sugarcrepe": _pairs,
    "dataset": Tabled,
    "hf": Tabled,
    "python": open_object,
    "object": open_object,
}
FUNCTION = re.compile(r"\.py:\w+$")
SUFFIXES = {".tar": "tar", ".parquet": "parquet", ".csv": "csv", ".tsv": "tsv", ".arrow": "dataset"}
SUFFIXES |= {".yaml": "yolo", ".yml": "yolo"}
MARKS = {  # files and folders that tell what a folder is: all that stand before a kind
    ("metadata.jsonl",): "folder",
    ("metadata.csv",): "csv",
    ("metadata.parquet",): "metadata",
    ("dataset_dict.json",): "dataset",
    ("state.json",): "dataset",
    ("instances.json", "refs(*).*"): "refcoco",
    ("region_descriptions.json",): "vg",
    ("Annotations", "Sentences"): "flickr30k_entities",
    ("Annotations", "JPEGImages"): "voc",
    ("data.yaml",): "yolo",
}


def recognise(spec: Spec) -> str | None:
    """The kind of what lies at a path, by its name and, for a folder, by what it holds; None where nothing does."""
    if not spec.path.strip():
        return None
    path = Path(spec.path).expanduser()
    if is_remote(spec.path):
        return SUFFIXES.get(path.suffix.lower(), "folder")
    if path.is_dir():
        return recognise_folder(path)
    if FUNCTION.search(spec.path):
        return "python"
    suffix = path.suffix.lower()
    if path.is_file():
        if suffix == ".json":
            return "vg" if path.name == "region_descriptions.json" else "coco" if is_coco(path) else "sugarcrepe"
        if suffix == ".jsonl" and is_narratives(path):
            return "narratives"
        if suffix == ".csv" and is_openimages(path):
            return "openimages"
    return SUFFIXES.get(suffix)


def recognise_folder(path: Path) -> str:
    """The kind of a folder; `folder`, which says what one looks like, where it holds nothing known."""
    for marks, kind in MARKS.items():
        if all(any(path.glob(mark)) for mark in marks):
            return kind
    for suffix in (".tar", ".parquet"):
        if any(path.glob(f"*{suffix}")) or any(path.glob(f"*/*{suffix}")):
            return SUFFIXES[suffix]
    return recognise_images(path) or "folder"


def with_box_format(specs: Sequence[str], layout: str | None) -> list[str]:
    """The specs, with this layout of boxes where they have any and name none. Raises UserError."""
    if layout is None:
        return list(specs)
    BoxLayout.parse(layout)
    return [spec if _has_no_boxes(spec) or BOX_FORMAT in spec else f"{spec}{BOX_FORMAT}{layout}" for spec in specs]


def _has_no_boxes(spec: str) -> bool:
    """Is it scenes, whose boxes are exact, or a file of pairs?"""
    return spec == "scenes" or spec.startswith("scenes:") or Path(spec).suffix == ".json"
