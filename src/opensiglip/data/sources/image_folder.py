"""Folders of images without metadata: classes by folder, a `.txt` beside each image, or images alone."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from opensiglip.data.example import BrokenExample
from opensiglip.data.sources.columns import Columns
from opensiglip.data.sources.metadata import MAX_LINE, SPLITS
from opensiglip.data.sources.spec import Spec
from opensiglip.data.sources.table import Listed, need_rows

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".avif", ".heic")


class ImageFolder(Listed):
    """Images below a folder, each with the lines of the `.txt` beside it as captions; without one, alone.

    Folders `train`, `val` (or `validation`) and `test` at the top are splits.
    """

    kind = "images"
    alone = True
    with_classes = False

    def __init__(self, spec: Spec, *, split: str = "train", languages: Sequence[str] | None = None) -> None:
        """Raises UserError where there is no image."""
        root = Path(spec.path).expanduser().resolve()
        records = [{"file_name": name} for name in image_names(root)]
        need_rows(spec, records, "image")
        splits = [SPLITS.get(record["file_name"].split("/")[0]) for record in records]
        columns = Columns("file_name", ("text",), "label" if self.with_classes else None, None, ())
        super().__init__(spec, split, languages, records, columns, root, splits)

    def values(self, row: int) -> dict[str, Any]:
        name = str(self.cell(row))
        if not self.with_classes:
            return {"text": self._lines(f"{name.rpartition('.')[0]}.txt")}
        folders = name.split("/")[:-1]
        if folders and folders[0] in SPLITS:
            del folders[0]
        return {"label": folders[0] if folders else None}

    def _lines(self, name: str) -> list[str]:
        """The lines of a text file; none where there is no such file. Raises BrokenExample."""
        if not (self.root / name).is_file():
            return []
        path = self.find(name)
        try:
            if path.stat().st_size > MAX_LINE:
                raise BrokenExample(f"text over {MAX_LINE // 1_000_000} MB")
            return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError):
            raise BrokenExample("text is not UTF-8") from None


class ClassFolder(ImageFolder):
    """Images in folders named as their classes, as ImageNet and torchvision have them."""

    kind = "classes"
    alone = False
    with_classes = True


def image_names(root: Path) -> list[str]:
    """The images below a folder, relative to it, in the order of their names. Links to folders are not followed."""
    return sorted(_walk(root, root))


def _walk(root: Path, folder: Path) -> Iterator[str]:
    for where, _, names in os.walk(folder):
        prefix = Path(where).relative_to(root)
        yield from ((prefix / name).as_posix() for name in names if is_image(name))


def is_image(name: str) -> bool:
    """Does a file's name end as an image's does?"""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def recognise_images(root: Path) -> str | None:
    """`classes` for images in two folders or more and none at the top or with a text; else `images`; None without."""
    first = next(_walk(root, root), None)
    if first is None:
        return None
    if (root / first).with_suffix(".txt").is_file() or any(is_image(entry.name) for entry in os.scandir(root)):
        return "images"
    top = [entry.name for entry in os.scandir(root) if entry.is_dir()]
    base = root / top[0] if top and all(name in SPLITS for name in top) else root
    classes = [entry for entry in os.scandir(base) if entry.is_dir() and next(_walk(root, Path(entry.path)), None)]
    return "classes" if len(classes) > 1 else "images"
