"""A hook of mkdocs: README.md, its neighbours and notebooks become pages, and links lead to where pages lie there."""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from notebook_page import DOWNLOAD, notebook_page  # lies beside this file, where mkdocs looks while it loads a hook

ROOT = Path(__file__).parents[1]
PAGES = {  # of the repository's root, by their place on the site
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security-policy.md",
    "CODE_OF_CONDUCT.md": "code-of-conduct.md",
}
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the root and of notebooks, which stay as files to download."""
    for name, place in PAGES.items():
        files.append(File.generated(config, place, content=(ROOT / name).read_text(encoding="utf-8")))
    for notebook in sorted((ROOT / "docs").rglob("*.ipynb")):
        place = notebook.relative_to(ROOT / "docs").with_suffix(".md").as_posix()
        files.append(File.generated(config, place, content=notebook_page(notebook)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links as they are in the repository, to where they lead on the site; what the site lacks is left as text."""
    home = next((name for name, place in PAGES.items() if place == page.file.src_uri), f"docs/{page.file.src_uri}")

    def moved(match: re.Match[str]) -> str:
        mark, text, target = match.groups()
        path, _, anchor = target.partition("#")
        if not path or ":" in path:
            return match[0]
        whole = posixpath.normpath(posixpath.join(posixpath.dirname(home), path))
        place = PAGES.get(whole) or whole.removeprefix("docs/")
        if place.endswith(".ipynb") and text != DOWNLOAD:
            place = place.removesuffix("ipynb") + "md"
        if (ROOT / whole).is_dir() and (ROOT / whole / "README.md").is_file():
            place = posixpath.join(place, "README.md")
        if whole not in PAGES and (not whole.startswith("docs/") or files.get_file_from_path(place) is None):
            return match[0] if mark else text
        near = posixpath.relpath(place, posixpath.dirname(page.file.src_uri) or ".")
        return f"{mark}[{text}]({near}{'#' + anchor if anchor else ''})"

    return LINK.sub(moved, markdown)
