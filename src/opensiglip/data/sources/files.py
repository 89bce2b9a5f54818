"""The files of a folder by the names that its metadata gives them."""

import os
import unicodedata
from functools import cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from opensiglip.data.example import BrokenExample
from opensiglip.data.sources.values import checked_text


def parse_file_name(value: Any) -> str:
    """A relative path that stays below its folder as written (where links lead is the folder's to check)."""
    if not isinstance(value, str) or not value.strip():
        raise BrokenExample("no file_name")
    path = PurePosixPath(checked_text(value.replace("\\", "/")))
    if PureWindowsPath(path).anchor or ".." in path.parts:  # an anchor is "/", "C:" or "//server", on any system
        raise BrokenExample("path leaves the folder")
    return str(path)


class Files:
    """The files below a folder. Each of its folders is read once, in one pass."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._scanned, self._listed = cache(self._scan), cache(self._list)

    def find(self, file_name: str) -> str:
        """The path below the root at which a file stands, in whichever Unicode normal form the disk has its name.

        Raises BrokenExample where it is missing, or where its links lead out of the folder.
        """
        path = PurePosixPath(file_name)
        if path.name not in self._scanned(str(path.parent)):
            path = self._spelled(path)
        inside = self._scanned(str(path.parent)).get(path.name)
        if inside is None:
            raise BrokenExample("image file is missing")
        if not inside:
            raise BrokenExample("path leaves the folder")
        return str(path)

    def _spelled(self, path: PurePosixPath) -> PurePosixPath:
        """The path with each name as the disk spells it: archives packed on a Mac hold an umlaut as two characters."""
        found = PurePosixPath()
        for part in path.parts:
            found /= self._listed(str(found)).get(unicodedata.normalize("NFC", part), part)
        return found

    def _scan(self, folder: str) -> dict[str, bool]:
        """Every file of a folder, and whether it stays below the root once links are followed."""
        try:
            place = (self.root / folder).resolve()
            with os.scandir(place) as entries:
                inside = place.is_relative_to(self.root)
                return {
                    entry.name: inside
                    and (not entry.is_symlink() or Path(entry.path).resolve().is_relative_to(self.root))
                    for entry in entries
                    if (Path(entry.path).is_file() if entry.is_symlink() else entry.is_file())
                }
        except (OSError, RuntimeError, ValueError):  # not there, a circle of links, a name no system takes
            return {}

    def _list(self, folder: str) -> dict[str, str]:
        """The names in a folder by their composed form."""
        try:
            return {unicodedata.normalize("NFC", path.name): path.name for path in (self.root / folder).iterdir()}
        except (OSError, ValueError):
            return {}


def below(root: Path, name: Any) -> str:
    """The file a column names, wherever its links lead still below root. Raises BrokenExample."""
    try:
        path = (root / parse_file_name(name)).resolve()
    except (OSError, RuntimeError, ValueError):
        raise BrokenExample("path is none that a system takes") from None
    if not path.is_relative_to(root):
        raise BrokenExample("path leaves the folder")
    return str(path)
