"""RefCOCO, RefCOCO+, RefCOCOg as published: `instances.json` and `refs(unc).p`, or that list as `refs(unc).json`."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from opensiglip.data.sources.coco import is_id
from opensiglip.data.sources.plain_pickle import NotPlain, read_plain
from opensiglip.data.sources.records import (
    Annotated,
    Record,
    corners,
    counted,
    first_name,
    holding,
    read_json,
    read_records,
    stat_of,
)
from opensiglip.data.sources.spec import Spec
from opensiglip.errors import EmptySplit, UserError
from opensiglip.json_file import DATA, load_json

REFS = re.compile(r"refs\((\w+)\)\.(p|json)")
PREFERRED = ("unc", "umd", "google")
FAMILY = ("refcoco", "refcoco+", "refcocog")  # folders beside each other, as the downloads have them
TEST = ("test", "testA", "testB")
POOLS = ("clean", "full")
MAX_SENTENCES = 10_000_000
MAX_REFS_FILE = 1 << 29  # bytes
PREFIX = "COCO_train2014_"
SHAPE = "the shape of RefCOCO's refs(unc).p"

Choose = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


class RefCoco(Annotated):
    """One example an image and split: each sentence is a region, of the box of its object.

    Splits are train, val, testA and testB; test is all of testA and testB. `?by=umd` names whose splits, where a folder
    has several. Train is clean: without the images that are val or test in any of the three sets whose folders lie
    beside this one (LocCa, arXiv:2403.19596, trains so). `?pool=full` is train as published.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        split: str = "train",
        languages: Sequence[str] | None = None,
        every_sentence: bool = False,
    ) -> None:
        """`every_sentence`: as published evaluations count, also one that two people said or that names two boxes.

        Raises UserError where files are missing or of another shape, or images are not found.
        """
        folder = Path(spec.path).expanduser().resolve()
        pool = spec.options.get("pool", "clean")
        if pool not in POOLS:
            raise UserError(f"--data {spec.name}: pool is clean or full, not {pool!r}.")
        refs, instances = refs_file(folder, spec), folder / "instances.json"
        family = [folder.parent / name for name in FAMILY] if pool == "clean" and split == "train" else []
        others = [refs_file(one, None) for one in family if one != folder and one.is_dir()]
        self.told = {"split_by": refs.stem, "pool": " ".join([pool, *(file.parent.name for file in others)])}
        held_out = [refs, *others] if family else []
        parse_own = partial(parse, refs, instances, split, held_out, list if every_sentence else once)
        options = [split, pool, *(["every sentence"] if every_sentence else [])]
        records = read_records("refcoco", [refs, instances, *others], options, parse_own)
        root, prefixed = find_images(spec, folder, first_name(records))
        self.drop = "" if prefixed else PREFIX
        super().__init__(spec, split, languages, records, root, "refcoco")

    def cell(self, row: int) -> str:
        return super().cell(row).removeprefix(self.drop)

    def facts(self) -> dict[str, Any]:
        return super().facts() | self.told


def refs_file(folder: Path, spec: Spec | None) -> Path:
    """The file of expressions: whose splits the spec names, else the usual. Raises UserError."""
    found = {match[1]: file for file in sorted(folder.glob("refs(*")) if (match := REFS.fullmatch(file.name))}
    by = None if spec is None else spec.options.get("by")
    if by is None:
        by = next((name for name in PREFERRED if name in found), "")
    if by not in found:
        raise UserError(f"{folder} has no refs({by or 'unc'}).p (it has splits by {', '.join(found) or 'nobody'}).")
    return found[by]


def read_refs(file: Path) -> list[dict[str, Any]]:
    """The list of references. Raises UserError."""
    if stat_of(file)[1] > MAX_REFS_FILE:
        raise UserError(f"{file} is over {MAX_REFS_FILE >> 20} MB; give one in {SHAPE}.")
    try:
        stored = read_plain(file.read_bytes()) if file.suffix == ".p" else load_json(file, DATA)
    except (OSError, ValueError, RecursionError, NotPlain) as error:
        raise UserError(f"{file} can't be read ({error}); give one in {SHAPE}, of plain values.") from None
    if not isinstance(stored, list):
        raise UserError(f"{file} is not a list; give one in {SHAPE}.")
    return [one for one in stored if isinstance(one, dict)]


def wanted(split: str) -> tuple[str, ...]:
    """The published names of a split."""
    return TEST if split == "test" else (split,)


def parse(
    refs: Path, instances: Path, split: str, held_out: Sequence[Path], choose: Choose, skipped: Counter[str]
) -> Iterator[Record]:
    """A record an image of the split, with the regions that `choose` keeps; of `held_out`'s val and test none.

    Raises UserError.
    """
    images, boxes = (by_id(some) for some in lists_of(instances))
    leaks = {number for file in held_out for number in images_held_out(file)}
    of_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    sentences = 0
    for one in read_refs(refs):
        number, thing = one.get("image_id"), one.get("ann_id")
        if not is_id(number) or number not in images or not is_id(thing) or thing not in boxes:
            skipped["reference to an image or object that is not listed"] += 1
        elif one.get("split") in wanted(split):
            if number in leaks:
                skipped["reference in an image of val or test"] += 1
                continue
            texts = [item.get("sent") for item in one.get("sentences") or () if isinstance(item, dict)]
            sentences += len(texts)
            if sentences > MAX_SENTENCES:
                raise UserError(f"{refs} has over {MAX_SENTENCES:,} sentences; give one in {SHAPE}.")
            of_image[number] += [{"bbox": corners(boxes[thing].get("bbox")), "phrase": text} for text in texts]
    for number, regions in of_image.items():
        image = images[number]
        size = {key: image[key] for key in ("width", "height") if image.get(key) is not None}
        name = image.get("file_name")
        yield Record(name if isinstance(name, str) else "", split, size | {"regions": choose(regions)})


def lists_of(file: Path) -> list[Any]:
    """Images and annotations of a file in COCO's shape. Raises UserError."""
    stored = read_json(file, "COCO's shape")
    return [stored.get(name) if isinstance(stored, dict) else None for name in ("images", "annotations")]


def by_id(items: Any) -> dict[Any, dict[str, Any]]:
    found = [one for one in items if isinstance(one, dict)] if isinstance(items, list) else []
    return {one["id"]: one for one in found if is_id(one.get("id"))}


def images_held_out(file: Path) -> Iterator[Any]:
    """The images of val and test. Raises UserError."""
    for one in read_refs(file):
        if one.get("split") in ("val", *TEST) and is_id(one.get("image_id")):
            yield one["image_id"]


def once(regions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each phrase of a box once, as two people may say the same; one that names two boxes says so."""
    return counted(list({json.dumps(region, sort_keys=True): region for region in regions}.values()))


def find_images(spec: Spec, folder: Path, name: str | None) -> tuple[Path, bool]:
    """COCO's photographs, and whether their names begin as those of 2014 do. Raises UserError."""
    if name is None:
        raise EmptySplit(f"{spec.name} has no row in this split; choose another, as train, val, testA or testB.")
    if "root" in spec.options:
        places = [Path(spec.options["root"]).expanduser()]
    else:
        above = [folder, folder.parent, folder.parent.parent]
        names = ("train2014", "images/train2014", "images/mscoco/images/train2014", "train2017", "images", "")
        places = [one / part for part in names for one in above]
    for spelled in (name, name.removeprefix(PREFIX)):
        if (root := holding(spelled, places)) is not None:
            return root, spelled == name
    raise UserError(f"--data {spec.name}: image {name} is not found; give COCO's train2014 as {spec.path}?root=FOLDER.")
