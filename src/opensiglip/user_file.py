"""A user's own recipe or task: an object of a Python file that they name."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

from opensiglip.errors import UserError


def load(what: str, file: str, name: str) -> Any:
    """What FILE.py calls `name`, None if nothing; `what` it should be. Raises UserError if there is no such file."""
    path = Path(file)
    if not path.is_file():
        raise UserError(f"{what} file {file} does not exist.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return getattr(module, name, None)
