"""Rows of a table whose image column holds bytes, pixels or paths: the ground of all kinds but tars."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from opensiglip.data.example import BrokenExample
from opensiglip.data.sources.columns import Columns
from opensiglip.data.sources.files import Files, parse_file_name
from opensiglip.data.sources.images import MAX_BYTES, MAX_PIXELS
from opensiglip.data.sources.lazy import Encoded, LazySource, read_classes
from opensiglip.data.sources.metadata import SPLITS
from opensiglip.data.sources.spec import Spec
from opensiglip.data.sources.split import Chosen, Rows, is_held_out
from opensiglip.errors import UserError


class Table(LazySource):
    """Rows with named values. A kind of table gives `values` and `cell`."""

    def __init__(
        self,
        spec: Spec,
        split: str,
        languages: Sequence[str] | None,
        rows: Rows,
        columns: Columns,
        root: Path | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        """`root`: what paths of images are relative to and stay below; `classes`: names of labels that are numbers."""
        self.named = columns if columns.categories else replace(columns, categories=tuple(read_classes(spec)))
        self.root = (Path(spec.options["root"]).expanduser() if "root" in spec.options else root or Path()).resolve()
        self.files = Files(self.root)
        super().__init__(spec, split, languages, rows, classes)

    @abstractmethod
    def values(self, row: int) -> dict[str, Any]:
        """A row's values by column, without the image."""

    @abstractmethod
    def cell(self, row: int) -> Any:
        """What stands in a row's image column."""

    def columns(self, row: int) -> dict[str, Any]:
        return self.named.row(self.values(row))

    def image(self, row: int) -> Encoded:
        cell = self.cell(row)
        return self.find(cell) if isinstance(cell, str) else encoded(cell, self.find)

    def find(self, name: str) -> Path:
        """The file of an image. Raises BrokenExample where it is missing or leaves the root."""
        return self.root / self.files.find(relative(name, self.root))

    def facts(self) -> dict[str, Any]:
        return {"columns": str(self.named)}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "files"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.files = Files(self.root)


class Listed(Table):
    """Rows in memory, each a row of metadata.jsonl with its `file_name`; rows of one image are of one group."""

    def __init__(
        self,
        spec: Spec,
        split: str,
        languages: Sequence[str] | None,
        records: Sequence[dict[str, Any]],
        columns: Columns,
        root: Path,
        splits: Sequence[str | None] | None = None,
    ) -> None:
        """`splits`: of each row. Without, one image in fifty is val, by a hash of its name."""
        self.records = records
        rows = choose_rows([str(record[columns.image]) for record in records], splits, split)
        super().__init__(spec, split, languages, rows, columns, root)

    def values(self, row: int) -> dict[str, Any]:
        return self.records[row]

    def cell(self, row: int) -> Any:
        return self.records[row][self.named.image]

    def key(self, row: int) -> str:
        return str(self.cell(row))

    def group(self, index: int) -> str:
        return f"{self.root}/{self.key(self.rows.row(index))}"


def choose_rows(names: Sequence[str], splits: Sequence[str | None] | None, split: str) -> Chosen:
    """The rows of a split: those that name it, or by a hash of their image's name where none names any."""
    if splits is not None and any(splits):
        known = [SPLITS.get(name or "train", name) for name in splits]
        held_out = {name for name, own in zip(names, known, strict=True) if own in ("val", "test")}
        # An image that any row holds out never trains, whatever its other rows say.
        chosen = [
            row
            for row, (name, own) in enumerate(zip(names, known, strict=True))
            if own == split and (own != "train" or name not in held_out)
        ]
        return Chosen(chosen)
    if split not in ("train", "val"):
        return Chosen([])
    return Chosen([row for row, name in enumerate(names) if is_held_out(name) == (split == "val")])


def relative(name: str, root: Path) -> str:
    """A path of an image, which may be absolute where it stays below the root, relative to it. Raises BrokenExample."""
    if name.startswith(("http://", "https://")):
        raise BrokenExample("image is a link: fetch it, with img2dataset for example")
    if Path(name).is_absolute():
        try:
            name = str(Path(name).relative_to(root))
        except ValueError:
            raise BrokenExample("path leaves the folder: give ?root=FOLDER") from None
    return parse_file_name(name)


def encoded(cell: Any, find: Callable[[str], Path]) -> Encoded:
    """An image from what a table, `datasets` or a torch dataset holds. Raises BrokenExample."""
    if isinstance(cell, Mapping):  # as `datasets` stores an image
        cell = cell.get("bytes") or cell.get("path")
        return find(cell) if isinstance(cell, str) else encoded(cell, find)
    if isinstance(cell, bytes | bytearray | memoryview):
        if len(cell) > MAX_BYTES:
            raise BrokenExample(f"image file over {MAX_BYTES // 1_000_000} MB")
        return bytes(cell)
    if isinstance(cell, Image.Image | Path):
        return cell
    if isinstance(cell, np.ndarray) and cell.dtype == np.uint8:
        cell = torch.from_numpy(np.array(cell))  # a copy: what it is a view of may be read-only
        cell = cell.permute(2, 0, 1) if cell.ndim == 3 and cell.shape[2] == 3 and cell.shape[0] != 3 else cell
    if not isinstance(cell, Tensor):
        raise BrokenExample("no image")
    if cell.dtype != torch.uint8 or cell.ndim != 3 or cell.shape[0] != 3 or not 0 < cell[0].numel() <= MAX_PIXELS:
        raise BrokenExample("image is not uint8 of shape [3, H, W]")
    return cell.contiguous()


def need_rows(spec: Spec, records: Sequence[Any], what: str) -> None:
    """Raises UserError where there are none."""
    if not records:
        raise UserError(f"--data {spec.name} has no {what}; name one that has.")
