"""A user's own recipe, task or study: an object of a Python file that they name."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from opensiglip.errors import UserError

__path__: list[str] = []  # the files are this module's submodules
_read: dict[str, int] = {}  # when each file that was imported had been written, in nanoseconds


class _Finder(MetaPathFinder):
    """Finds a file's module by its name, `STEM_PATH` with the path in hexadecimal.

    So a fresh process (a data worker that is spawned, not forked) can unpickle what the file defines.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        parent, _, name = fullname.rpartition(".")
        if parent != __name__:
            return None
        return spec_from_file_location(fullname, os.fsdecode(bytes.fromhex(name.rpartition("_")[2])))


sys.meta_path.append(_Finder())


def check(what: str, file: str) -> Path:
    """The file's whole path. Raises UserError if it does not exist or is not Python; `what` it should be."""
    path = Path(file).resolve()
    if not file.endswith(".py") or path.suffix != ".py":  # also of a link: the importer takes compiled code, too
        raise UserError(f"{what} file {file} is not named FILE.py; name a Python source file.")
    if not path.is_file():
        raise UserError(f"{what} file {file} does not exist.")
    try:
        compile(path.read_bytes(), file, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{what} file {file} is not Python: {error}.") from None
    return path


def named_in(value: Any) -> str | None:
    """The first of a value's texts that names an object in FILE.py, which `load` would run; None if none does."""
    texts = value if isinstance(value, list | tuple) else [value]
    return next((text for text in texts if isinstance(text, str) and ".py:" in text), None)


def load(what: str, file: str, name: str) -> Any:
    """What FILE.py calls `name`, None if nothing. Raises UserError if there is no such file, or it is not Python."""
    path = check(what, file)
    module = f"{__name__}.{path.stem.replace('.', '_')}_{os.fsencode(path).hex()}"
    written = path.stat().st_mtime_ns
    if _read.get(module) != written:  # edited since: read it again
        sys.modules.pop(module, None)
    _read[module] = written
    return getattr(import_module(module), name, None)
