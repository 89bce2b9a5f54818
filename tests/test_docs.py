"""The documents speak of files that exist."""

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

import opensiglip

PACKAGE = Path(opensiglip.__file__).parent
CLONE = PACKAGE.parents[1]
ROOMS = {path.name for path in PACKAGE.iterdir()} | {"tests", "docs", "benchmarks", "studies", "src"}
NAMED = re.compile(r"(?<![\w./-])((?:[a-z0-9_-]+/)+[a-z0-9_-]+\.(?:py|md|sh|html|css))\b")
# Paths below these words are of other people's repositories.
FOREIGN = re.compile(
    r"big_vision|open_clip|transformers|DINOv2|dinov2|scenic|timm|iBOT|CapPa's code|t5x|lightly|paxml|tokenization_auto"
)


def texts() -> Iterator[Path]:
    for folder, ending in (
        ("src", "*.py"),
        ("benchmarks", "*.py"),
        ("studies", "*.py"),
        ("docs", "*.md"),
        ("tests", "*.py"),
    ):
        yield from sorted((CLONE / folder).rglob(ending))
    yield from sorted(CLONE.glob("*.md"))


def exists(named: str, near: Path) -> bool:
    return any((place / named).exists() for place in (CLONE, PACKAGE, near.parent, CLONE / "docs"))


@pytest.mark.parametrize("path", [path for path in texts() if path.name != "CHANGELOG.md"], ids=lambda path: path.name)
def test_every_file_that_is_named_is_there(path: Path) -> None:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        for named in NAMED.findall(line):
            if named.split("/")[0] in ROOMS and not FOREIGN.search(line):
                assert exists(named, path), f"{path.relative_to(CLONE)}:{number} names {named}, which is not there"


def listed(nav: Any) -> Iterator[str]:
    """The pages of mkdocs' navigation."""
    for entry in nav:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            yield from [value] if isinstance(value, str) else listed(value)


def test_the_site_lists_every_page() -> None:
    nav = set(listed(yaml.safe_load((CLONE / "mkdocs.yml").read_text())["nav"]))
    made = set(re.findall(r'": "([a-z-]+\.md)"', (CLONE / "docs/site_pages.py").read_text()))
    made |= {str(path.relative_to(CLONE / "docs").with_suffix(".md")) for path in (CLONE / "docs").rglob("*.ipynb")}
    assert nav == made | {str(path.relative_to(CLONE / "docs")) for path in (CLONE / "docs").rglob("*.md")}


def test_the_reference_names_what_is_there_and_every_public_name() -> None:
    pages = [path.read_text() for path in sorted((CLONE / "docs/reference").glob("*.md"))]
    named = [name for page in pages for name in re.findall(r"^::: (\S+)$", page, re.MULTILINE)]
    for name in named:
        try:
            import_module(name)
        except ModuleNotFoundError:
            module, _, member = name.rpartition(".")
            assert hasattr(import_module(module), member), name
    for name, home in opensiglip.HOMES.items():
        assert f"{home}.{name}" in named or home in named, f"{name} stands on no page of docs/reference"
