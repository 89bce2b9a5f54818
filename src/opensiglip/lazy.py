"""Public names of a package that are imported when first used: reading flags need not wait for torch."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any


def lookup(package: str, homes: Mapping[str, str], name: str) -> Any:
    """What `package` calls `name`; `homes` are the modules below it that define its names. Raises AttributeError."""
    if name not in homes:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return getattr(import_module(f"{package}.{homes[name]}"), name)
