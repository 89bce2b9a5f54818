"""Flickr30k Entities: `Sentences/ID.txt` with phrases in brackets, `Annotations/ID.xml` with their boxes."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opensiglip.data.example import BrokenExample
from opensiglip.data.sources.box_layout import BoxLayout
from opensiglip.data.sources.columns import Columns
from opensiglip.data.sources.files import below
from opensiglip.data.sources.metadata import MAX_LINE
from opensiglip.data.sources.records import find_root
from opensiglip.data.sources.spec import Spec
from opensiglip.data.sources.table import Listed, need_rows
from opensiglip.data.sources.xml import read_xml

PHRASE = re.compile(r"\[/EN#(\d+)/\S+ ([^\]]*)\]")
LISTS = {"train.txt": "train", "val.txt": "val", "test.txt": "test"}
PLACES = ("flickr30k-images", "flickr30k_images", "images", "Images", "")


class Flickr30kEntities(Listed):
    """Images with their sentences, and a region for each box of each phrase; `n_boxes` counts a phrase's boxes.

    Splits are those of `train.txt`, `val.txt` and `test.txt`, which come with the annotations.
    """

    kind = "flickr30k_entities"
    fixed_layout = BoxLayout()

    def __init__(self, spec: Spec, *, split: str = "train", languages: Sequence[str] | None = None) -> None:
        """Raises UserError where there is no sentence, or the images are not found."""
        self.folder = Path(spec.path).expanduser().resolve()
        names = sorted(path.stem for path in (self.folder / "Sentences").glob("*.txt"))
        need_rows(spec, names, "file in Sentences")
        listed = {name: split for file, split in LISTS.items() for name in lines_of(self.folder / file)}
        # Who has lists has chosen: what none of them names is in no split.
        names = [name for name in names if name in listed] if listed else names
        need_rows(spec, names, "file in Sentences that train.txt, val.txt or test.txt names")
        places = [one / name for one in (self.folder, self.folder.parent) for name in PLACES]
        root = find_root(spec, f"{names[0]}.jpg", places)
        records = [{"file_name": f"{name}.jpg"} for name in names]
        columns = Columns("file_name", ("captions",), None, None, ("regions",))
        splits = [listed.get(name) for name in names]
        super().__init__(spec, split, languages, records, columns, root, splits)

    def values(self, row: int) -> dict[str, Any]:
        name = str(self.cell(row)).removesuffix(".jpg")
        sentences = read_sentences(Path(below(self.folder, f"Sentences/{name}.txt")))
        boxes = read_boxes(Path(below(self.folder, f"Annotations/{name}.xml")))
        regions = [
            {"bbox": box, "phrase": phrase, "n_boxes": len(boxes[chain])}
            for chain, phrase in dict.fromkeys(found for one in sentences for found in PHRASE.findall(one))
            for box in boxes.get(chain, ())
        ]
        return {"captions": [PHRASE.sub(r"\2", one) for one in sentences], "regions": regions}


def lines_of(file: Path) -> list[str]:
    """The lines of a list; none where there is no such file."""
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError):
        return []


def read_sentences(path: Path) -> list[str]:
    """The lines, with their brackets. Raises BrokenExample."""
    try:
        if path.stat().st_size > MAX_LINE:
            raise BrokenExample(f"text over {MAX_LINE // 1_000_000} MB")
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise BrokenExample("text is not UTF-8") from None
    except OSError:
        raise BrokenExample("sentences can't be read") from None


def read_boxes(path: Path) -> dict[str, list[Any]]:
    """The boxes of each chain of phrases. An object may be of several chains; one without a box is a scene."""
    boxes: dict[str, list[Any]] = defaultdict(list)
    for thing in read_xml(path).all("object"):
        for box in thing.all("bndbox"):
            edges = box.numbers("xmin", "ymin", "xmax", "ymax")
            for name in thing.all("name"):
                boxes[name.text.strip()].append(edges)
    return boxes
