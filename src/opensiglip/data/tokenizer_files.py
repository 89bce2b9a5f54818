"""The files of a tokenizer: which they are, fetched from the hub, and checked before a library reads them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opensiglip.errors import UserError
from opensiglip.json_file import load_json

EOS = "</s>"
FILES = ("tokenizer.json", "tokenizer_config.json", "spiece.model", "tokenizer.model")
LARGEST_ID, LARGEST_FILE = 2**24, 2**28  # of a tokenizer.json; Gemma's has 256,000 entries in 34 MB


def has_files(place: str | Path) -> bool:
    """Has a folder a tokenizer? A hub id is taken to."""
    return not Path(place).is_dir() or any((Path(place) / file).is_file() for file in FILES)


def check_ids(path: Path) -> None:
    """Raises UserError on a tokenizer.json with an id that no table of words has.

    The Rust library makes room for the largest id and aborts the process, which nothing here could catch.
    """
    if not path.is_file():
        return
    if path.stat().st_size > LARGEST_FILE:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes, more than {LARGEST_FILE:,}; fetch it again.")
    for number in _numbers(load_json(path)):
        if number > LARGEST_ID:
            raise UserError(f"{path} has the number {str(number)[:20]}, beyond any id of a tokenizer; fetch it again.")


def _numbers(value: Any) -> Iterator[int]:
    """The whole numbers of a tokenizer.json, among them all ids."""
    pending = [value]
    while pending:
        one = pending.pop()
        if isinstance(one, dict):
            pending.extend(one.values())
        elif isinstance(one, list):
            pending.extend(one)
        elif isinstance(one, int) and not isinstance(one, bool):
            yield one


def special_tokens(named: dict[str, Any]) -> dict[str, str]:
    """The special tokens of a SigLIP tokenizer_config.json."""
    found = {name: named.get(name) or EOS for name in ("pad_token", "eos_token")}
    return {name: token["content"] if isinstance(token, dict) else token for name, token in found.items()}


def fetched(name: str) -> Path:
    """A hub id's tokenizer files, on this machine."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=["*.json", "*.model", "*.txt"]))
