"""Visual Genome's region descriptions: `region_descriptions.json` beside `VG_100K` and `VG_100K_2`."""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from opensiglip.data.sources.coco import is_id
from opensiglip.data.sources.records import Annotated, Record, corners, counted, find_root, read_json, read_records
from opensiglip.data.sources.spec import Spec
from opensiglip.errors import UserError

FILE = "region_descriptions.json"
PLACES = ("VG_100K", "VG_100K_2", "images", "images/VG_100K", "images/VG_100K_2", "images2", ".")


class VisualGenome(Annotated):
    """Images with all their regions; one image in fifty is val. A phrase of several boxes says so."""

    def __init__(self, spec: Spec, *, split: str = "train", languages: Sequence[str] | None = None) -> None:
        """Raises UserError where the file is missing or of another shape, or no image is found."""
        path = Path(spec.path).expanduser().resolve()
        file = path / FILE if path.is_dir() else path
        root = Path(spec.options["root"]).expanduser() if "root" in spec.options else file.parent
        records = read_records("vg", [file], [], partial(parse, file))
        self.folders = {name: place for place in reversed(PLACES) for name in listed(root / place)}
        names = records.table["file_name"].to_pylist()
        name = next((name for name in names if name in self.folders), names[0] if names else None)
        find_root(Spec(spec.name, spec.kind, spec.path), self.path(name) if name else None, [root])
        super().__init__(spec, split, languages, records, root, "vg")

    def path(self, name: str) -> str:
        """An image is in the first or the second half of the download; the annotations do not say."""
        return f"{self.folders.get(name, PLACES[0])}/{name}"

    def cell(self, row: int) -> str:
        return self.path(super().cell(row))


def listed(folder: Path) -> list[str]:
    """The names of a folder's images."""
    try:
        return [entry.name for entry in folder.iterdir() if entry.name.endswith(".jpg")]
    except OSError:
        return []


def parse(file: Path, skipped: Counter[str]) -> Iterator[Record]:
    """A record an image. Raises UserError."""
    stored = read_json(file, "Visual Genome's shape")
    if not isinstance(stored, list):
        raise UserError(f"{file} is not a list of images with regions; give Visual Genome's {FILE}.")
    for image in stored:
        regions = image.get("regions") if isinstance(image, dict) else None
        if not isinstance(regions, list) or not regions:
            skipped["image without regions"] += 1
            continue
        number = image.get("id", image.get("image_id"))
        if not is_id(number):
            skipped["image without id"] += 1
            continue
        found = [region_of(one) for one in regions if isinstance(one, dict)]
        yield Record(f"{number}.jpg", None, {"regions": counted(found)})


def region_of(one: dict[str, Any]) -> dict[str, Any]:
    return {"bbox": corners([one.get(key) for key in ("x", "y", "width", "height")]), "phrase": one.get("phrase")}
