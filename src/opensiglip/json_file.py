"""Write a JSON file so that a reader never meets half of it."""

import json
from pathlib import Path
from typing import Any

from opensiglip.disk import whole_file


def write_json(path: Path, value: Any) -> None:
    """Write `value`, indented, in one move. Raises ValueError on numbers that are not finite."""
    with whole_file(path) as part:
        part.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
