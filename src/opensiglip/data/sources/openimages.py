"""Open Images' boxes: `oidv6-train-annotations-bbox.csv`, with the names of its classes in a file beside it."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from opensiglip.data.example import BrokenExample
from opensiglip.data.sources.box_layout import BoxLayout
from opensiglip.data.sources.columns import Columns
from opensiglip.data.sources.csv import read_csv
from opensiglip.data.sources.records import counted, find_root
from opensiglip.data.sources.shards import find_shards
from opensiglip.data.sources.spec import Spec
from opensiglip.data.sources.split import split_in
from opensiglip.data.sources.table import Table, choose_rows
from opensiglip.errors import EmptySplit, UserError

EDGES = ("XMin", "YMin", "XMax", "YMax")
NEEDED = ("ImageID", "LabelName", *EDGES)
BEGINS = b"ImageID,Source,LabelName,"
CLASSES = ("*class-descriptions-boxable.csv", "*class-descriptions.csv")


class OpenImages(Table):
    """Images with a region for each box of one thing; boxes of a group are left out and counted.

    Files named train, validation or test are of that split. The boxes stay in Arrow's columns, as there are millions.
    """

    kind = "openimages"
    fixed_layout = BoxLayout("xyxy", relative=True)

    def __init__(self, spec: Spec, *, split: str = "train", languages: Sequence[str] | None = None) -> None:
        """Raises UserError where a file is of another shape, has no names of classes, or no image is found."""
        files = find_shards(spec, ".csv")
        splits = [split_in(file) for file in files]
        if any(splits):
            files = [file for file, name in zip(files, splits, strict=True) if (name or "train") == split]
        if not files:
            raise EmptySplit(f"{spec.name} has no row in split {split!r}; choose another.")
        tables, broken = zip(*(read_csv(file, (*NEEDED, "IsGroupOf")) for file in files), strict=True)
        for file, table in zip(files, tables, strict=True):
            if missing := set(NEEDED) - set(table.column_names):
                raise UserError(f"{file} has no column {sorted(missing)[0]}; give Open Images' annotations-bbox.csv.")
        table = pa.concat_tables(tables, promote_options="default")
        groups = 0
        if "IsGroupOf" in table.column_names:
            single = pc.not_equal(pc.fill_null(table["IsGroupOf"], b"0"), b"1")
            groups = table.num_rows - pc.sum(single, min_count=0).as_py()
            table = table.filter(single)
        codes = table["ImageID"].combine_chunks().dictionary_encode()
        order = np.argsort(codes.indices.to_numpy(), kind="stable")
        self.boxes = table.drop_columns("ImageID").take(order).combine_chunks()
        self.ids = codes.dictionary
        self.ends = np.cumsum(np.bincount(codes.indices.to_numpy(), minlength=len(self.ids)))
        self.labels_of = read_labels(files[0].parent, spec)
        names = [f"{one.decode(errors='replace')}.jpg" for one in self.ids.to_pylist()]
        above = [files[0].resolve().parent, files[0].resolve().parent.parent]
        folders = (split, "validation" if split == "val" else "images", "images", "")
        root = find_root(spec, names[0] if names else None, [one / name for one in above for name in folders])
        rows = choose_rows(names, [split] * len(names) if any(splits) else None, split)
        columns = Columns("file_name", ("captions",), None, None, ("regions",))
        super().__init__(spec, split, languages, rows, columns, root)
        self.skipped.update({reason: count for reason, count in left_out(groups, sum(broken)).items() if count})

    def values(self, row: int) -> dict[str, Any]:
        end = int(self.ends[row])
        first = int(self.ends[row - 1]) if row else 0
        return {"regions": counted([self._region(one) for one in self.boxes.slice(first, end - first).to_pylist()])}

    def cell(self, row: int) -> str:
        try:
            return f"{self.ids[row].as_py().decode()}.jpg"
        except UnicodeDecodeError:
            raise BrokenExample("text is not UTF-8") from None

    def key(self, row: int) -> str:
        return self.cell(row)

    def group(self, index: int) -> str:
        return f"{self.root}/{self.ids[self.rows.row(index)].as_py()!r}"

    def facts(self) -> dict[str, Any]:
        return {"boxes": self.boxes.num_rows}

    def _region(self, box: dict[str, Any]) -> dict[str, Any]:
        try:
            edges = [float(box[edge]) for edge in EDGES]
        except (TypeError, ValueError):
            return {}
        return {"bbox": edges, "phrase": self.labels_of.get(box["LabelName"])}


def left_out(groups: int, broken: int) -> dict[str, int]:
    return {"region: group": groups, "line has another number of columns than the header": broken}


def is_openimages(file: Path) -> bool:
    """Does a CSV begin as Open Images' boxes do?"""
    with file.open("rb") as opened:
        return opened.read(64).startswith(BEGINS)


def read_labels(folder: Path, spec: Spec) -> dict[bytes, str]:
    """The names of classes by label: lines as "/m/011k07,Tortoise". Raises UserError."""
    given = spec.options.get("classes")
    found = [Path(given).expanduser()] if given else [file for name in CLASSES for file in sorted(folder.glob(name))]
    if not found:
        raise UserError(f"{folder} has no {CLASSES[0][1:]}; give the file as {spec.path}?classes=FILE.")
    try:
        with found[0].open(encoding="utf-8", newline="") as opened:
            return {line[0].encode(): line[1].strip() for line in csv.reader(opened) if len(line) > 1}
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{found[0]} can't be read ({error}); give one label and its name per line.") from None
