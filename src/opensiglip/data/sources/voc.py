"""PASCAL VOC: an XML file of boxes for each image, in `Annotations` beside `JPEGImages`, or beside the image itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opensiglip.data.sources.box_layout import BoxLayout
from opensiglip.data.sources.columns import Columns
from opensiglip.data.sources.files import below
from opensiglip.data.sources.flickr30k import lines_of
from opensiglip.data.sources.image_folder import image_names
from opensiglip.data.sources.metadata import SPLITS
from opensiglip.data.sources.records import counted
from opensiglip.data.sources.spec import Spec
from opensiglip.data.sources.table import Listed, need_rows
from opensiglip.data.sources.xml import Element, read_xml


class Voc(Listed):
    """Images with a region for each object, "difficult" ones too. Splits are those of `ImageSets/Main`, or folders'.

    VOC counts pixels from 1 and to the last one inclusive: 1 to 3 are the three pixels 0 to 3.
    """

    kind = "voc"
    fixed_layout = BoxLayout()

    def __init__(self, spec: Spec, *, split: str = "train", languages: Sequence[str] | None = None) -> None:
        """Raises UserError where no image has an XML file."""
        folder = Path(spec.path).expanduser().resolve()
        self.devkit = (folder / "JPEGImages").is_dir()
        root = folder / "JPEGImages" if self.devkit else folder
        self.annotations = folder / "Annotations" if self.devkit else folder
        names = [name for name in image_names(root) if (self.annotations / f"{stem_of(name)}.xml").is_file()]
        need_rows(spec, names, "image with an XML file")
        sets = folder / "ImageSets" / "Main"
        listed = {stem: one for one in ("test", "val", "train") for stem in lines_of(sets / f"{one}.txt")}
        if listed:
            names = [name for name in names if stem_of(name) in listed]
            need_rows(spec, names, "image that ImageSets/Main names")
        splits = [listed.get(stem_of(name)) or SPLITS.get(name.split("/")[0]) for name in names]
        columns = Columns("file_name", ("captions",), None, None, ("regions",))
        super().__init__(spec, split, languages, [{"file_name": name} for name in names], columns, root, splits)

    def values(self, row: int) -> dict[str, Any]:
        file = below(self.annotations, f"{stem_of(str(self.cell(row)))}.xml")
        things = read_xml(Path(file)).all("object")
        return {"regions": counted([{"phrase": thing.find("name"), "bbox": box_of(thing)} for thing in things])}


def stem_of(name: str) -> str:
    return name.rpartition(".")[0]


def box_of(thing: Element) -> list[float] | None:
    """An object's box; None where it has none that is four numbers."""
    boxes = thing.all("bndbox")
    edges = boxes[0].numbers("xmin", "ymin", "xmax", "ymax") if boxes else None
    return None if edges is None else [edges[0] - 1, edges[1] - 1, edges[2], edges[3]]
