"""JSON files: read within bounds, written so that a reader never meets half of one."""

import json
import stat
from pathlib import Path
from typing import Any

from opensiglip.disk import whole_file

SIDECAR = "opensiglip.json"  # of a model's folder: what a transformers config lacks, such as architecture and tokenizer
FACTS, DATA = 1 << 28, 1 << 34  # most bytes of a file of ours or of a model, and of one of annotations


def load_json(path: Path, most: int = FACTS) -> Any:
    """What the file holds. A pipe or a device, which may never end, is not opened, and a link to one neither.

    Raises OSError on these and on a file of more than `most` bytes, ValueError on what is no JSON or is nested too
    deeply.
    """
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise OSError(f"{path} is no file")
    if facts.st_size > most:
        raise OSError(f"{path} has {facts.st_size:,} bytes, more than {most:,}")
    try:
        return json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def write_json(path: Path, value: Any) -> None:
    """Write `value`, indented, in one move. Raises ValueError on numbers that are not finite."""
    with whole_file(path) as part:
        part.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
