"""The folder that annotation writes: rows are only ever added, so that a run killed at any moment can go on.

What is done is read off the files themselves: a line that is whole is done, half a line is cut off again.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from opensiglip.errors import UserError
from opensiglip.json_file import load_json

SETTINGS, ROWS, LEFT_OUT = "annotation.json", "metadata.jsonl", "left_out.jsonl"

Key = tuple[str, int]  # split and index in the source


class Ledger:
    """`metadata.jsonl` with the rows, `left_out.jsonl` with what has none and why, `annotation.json` with settings."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        """Open the folder, new or begun with the same settings. Raises UserError if it holds anything else."""
        self.folder = folder
        path = folder / SETTINGS
        half = path.with_suffix(".part")  # all there is, if it was killed before it had a name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if path.is_file():
                check(load_json(path), settings, folder)
            elif any(other != half for other in folder.iterdir()):
                raise UserError(f"--out {folder} holds other files; name a new or empty folder.")
            else:
                half.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
                half.rename(path)
            self.rows, self.left_out = (read_whole_lines(folder / name) for name in (ROWS, LEFT_OUT))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"--out {folder} can't be used ({reason}); name another folder.") from None
        self.done: set[Key] = {(row["split"], row["row"]) for row in self.rows + self.left_out}

    def add(self, rows: Iterable[dict[str, Any]], left_out: Iterable[dict[str, Any]]) -> None:
        """Write what is not yet written, in order, and wait until it is on the disk."""
        for name, book, entries in ((LEFT_OUT, self.left_out, left_out), (ROWS, self.rows, rows)):
            new = [entry for entry in entries if (entry["split"], entry["row"]) not in self.done]
            if new:
                with (self.folder / name).open("ab") as file:
                    file.write(b"".join(json.dumps(entry, ensure_ascii=False).encode() + b"\n" for entry in new))
                    file.flush()
                    os.fsync(file.fileno())
                book += new
                self.done |= {(entry["split"], entry["row"]) for entry in new}


def check(before: Any, now: dict[str, Any], folder: Path) -> None:
    """Raises UserError unless the folder was begun with these settings."""
    if not isinstance(before, dict):
        raise ValueError(f"{SETTINGS} is not a JSON object")
    changed = [
        f"{name}: {before.get(name)} before, {value} now"
        for name, value in now.items()
        if name != "versions" and before.get(name) != value
    ]
    if changed:
        raise UserError(f"--out {folder} was begun with other settings ({'; '.join(changed)}); name another folder.")


def read_whole_lines(path: Path) -> list[dict[str, Any]]:
    """The file's rows; half a line at its end, left by a run that was killed, is cut off."""
    if not path.is_file():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return [json.loads(line) for line in whole.splitlines()]
