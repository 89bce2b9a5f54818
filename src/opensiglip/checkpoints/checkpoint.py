"""`Checkpoint`: weights as `Model.state_dict()` names and lays them out, whoever made them; and where they lie."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from opensiglip.errors import UserError
from opensiglip.models.sizes import Architecture, Shape

# What is fetched of a hub id: weights as safetensors, and text files. Nothing that could run, nothing pickled.
WANTED = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.npz", "*.model", "*.txt")
MOST_PATCHES = 2**16  # of an image: 4096 x 4096 pixels of patches of 16
ACTIVATIONS = ("gelu_pytorch_tanh", "gelu")  # big_vision's gelu is the approximate one; some ports take the exact


@dataclass(frozen=True)
class Checkpoint:
    """What was read: `state` holds the towers, and what else the maker's format has of ours.

    The patch embedding is a convolution [D, 3, p, p], or NaFlex's matrix [D, p * p * 3]; temperature and bias are [1].
    """

    name: str  # as it was asked for, for messages
    kind: str  # the format, in words
    state: dict[str, Tensor]
    architecture: Architecture
    vocabulary: int = 0  # rows of the table of words; 0 without one
    folder: Path | None = None  # where a tokenizer may lie
    text: dict[str, Any] | None = field(default=None)  # our own text policy, where it says so itself


def locate(name: str) -> Path:
    """A local folder or file by its path, or a hub id's files, fetched. Raises UserError."""
    path = Path(name)
    if path.exists():
        return path
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(f"{name}: there is no such folder or file to start from.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(WANTED)))
    except Exception as error:  # of the hub, the network and the disk: a dozen types
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"{name} is no local folder and can't be fetched from the hub ({reason}).") from error


def rename(name: str, rules: Iterable[tuple[str, str]]) -> str:
    """The name after every rule (pattern, replacement), in turn."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no such file. Raises UserError on anything else."""
    if not path.is_file():
        return {}
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is not readable JSON ({error}); fetch the checkpoint again.") from error
    if not isinstance(facts, dict):
        raise UserError(f"{path} is not a JSON object; fetch the checkpoint again.")
    return facts


def most_patches(place: str | Path | None) -> int | None:
    """How many patches of an image the NaFlex image processor of a folder or hub id takes; None without one.

    Raises UserError on a number that is none.
    """
    from transformers import Siglip2ImageProcessor

    try:
        processor = None if place is None else Siglip2ImageProcessor.from_pretrained(place)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    most = None if processor is None else processor.max_num_patches
    if most is not None and not (isinstance(most, int) and 1 <= most <= MOST_PATCHES):
        raise UserError(f"{place} has an image processor of {most!r} patches; give 1 to {MOST_PATCHES}.")
    return most


def shape(width: int, depth: int, mlp: int, heads: int, activation: str, where: str) -> Shape:
    """A tower's shape. Raises UserError on an activation our towers do not have."""
    if activation not in ACTIVATIONS:
        raise UserError(f"{where} has the activation {activation!r}; our towers have {' and '.join(ACTIVATIONS)}.")
    return Shape(width, depth, mlp, heads, activation)
