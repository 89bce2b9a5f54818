"""Imports point one way, so that each part can be read, tested and replaced without those above it."""

import ast
from pathlib import Path

import pytest

import opensiglip

ROOT = Path(opensiglip.__file__).parent
FILES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(ROOT.rglob("*.py"))}

# What a part may import of ours. A name stands for a file or folder below src/opensiglip, less what is named closer.
MAY = {
    "errors": set(),
    "types": set(),
    "user_file": {"errors"},
    "losses": set(),
    "distributed": set(),
    "fused": {"losses", "distributed"},
    "models": {"models", "types", "fused", "losses", "errors"},
    "data": {"data", "errors", "types", "user_file"},
    "drawing": {"data", "errors"},
    "data.show": {"data", "drawing", "errors"},
    "objectives": {"objectives", "types", "fused", "losses", "models"},
    "recipes": {"recipes", "data", "models", "objectives", "errors"},
    "decoding": {"decoding", "data", "models", "types", "errors"},
    "train.optimizer": {"models"},
    "evaluate": {
        "evaluate",
        "data",
        "models",
        "objectives",
        "decoding",
        "drawing",
        "train.optimizer",
        "types",
        "errors",
    },
    "annotate": {"annotate", "data", "data.show", "evaluate", "errors"},
    "use": {
        "use",
        "data",
        "data.show",
        "drawing",
        "models",
        "decoding",
        "evaluate",
        "report",
        "types",
        "errors",
    },
}


def imported(path: Path) -> set[str]:
    """Every module a file imports, also inside functions, by its full name."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part_of(name: str) -> str:
    """The closest entry of the table, or the topmost folder."""
    entries = [entry for entry in MAY if name == entry or name.startswith(entry + ".")]
    return max(entries, key=len, default=name.split(".")[0])


def ours(path: Path) -> set[str]:
    names = {name for name in imported(path) if name.startswith("opensiglip.")}
    return {part_of(name.removeprefix("opensiglip.")) for name in names}


@pytest.mark.parametrize("part", MAY)
def test_a_part_imports_only_what_lies_below_it(part: str) -> None:
    files = [path for name, path in FILES.items() if part_of(name) == part]
    assert files
    for path in files:
        assert ours(path) <= MAY[part], f"{path.name} reaches up"


def test_the_table_has_no_circle() -> None:
    above = {part: below - {part} for part, below in MAY.items()}
    left = set(above)
    while left:
        free = {part for part in left if not above[part] & left}
        assert free, f"a circle among {left}"
        left -= free


def test_only_one_file_knows_of_ranks() -> None:
    knowing = {
        name for name, path in FILES.items() if any(used.startswith("torch.distributed") for used in imported(path))
    }
    assert knowing == {"distributed"}


def test_nothing_unpickles() -> None:
    for name, path in FILES.items():
        assert not imported(path) & {"pickle", "torch.load", "shelve", "marshal", "dill"}, name
        assert "torch.load(" not in path.read_text(encoding="utf-8"), name
