"""A notebook as Markdown for the site: its texts, its code, and what the code printed or showed."""

import json
import re
from pathlib import Path
from typing import Any

DOWNLOAD = "Download this notebook"
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def notebook_page(notebook: Path) -> str:
    """The page; the notebook itself is a file beside it."""
    cells: list[dict[str, Any]] = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    parts = [part for cell in cells for part in _cell(cell)]
    parts.insert(1, f"[{DOWNLOAD}]({notebook.name})")  # below its heading
    return "\n\n".join(parts) + "\n"


def _cell(cell: dict[str, Any]) -> list[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        heading, _, rest = source.partition("\n\n")
        return [heading, rest] if rest else [source]
    return [f"```python\n{source}\n```", *map(_output, cell["outputs"])]


def _output(output: dict[str, Any]) -> str:
    if output["output_type"] == "stream":
        return _printed("".join(output["text"]))
    data = output["data"]
    if "image/png" in data:
        picture = "".join(data["image/png"]).replace("\n", "")
        return f'<img alt="What the cell above shows" src="data:image/png;base64,{picture}">'
    if "text/html" in data:
        return "".join(data["text/html"])
    return _printed("".join(data["text/plain"]))


def _printed(text: str) -> str:
    return "```text\n" + COLOUR.sub("", text).rstrip("\n") + "\n```"
