"""Where a checkpoint lies, and its files: JSON and safetensors by name. Nothing is unpickled."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from opensiglip.errors import UserError, first_line
from opensiglip.json_file import load_json
from opensiglip.models.limits import check_sizes

# What is fetched of a hub id: weights as safetensors, and text files. Nothing that could run, nothing pickled.
WANTED = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.npz", "*.model", "*.txt")
WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")  # DistributedDataParallel's, torch.compile's


def locate(name: str) -> Path:
    """A local folder or file by its path, or a hub id's files, fetched. Raises UserError."""
    path = Path(name).expanduser()
    if path.exists():
        return path
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(f"{name}: there is no such folder or file of weights; give the path of one, or a hub id.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(WANTED)))
    except Exception as error:  # of the hub, the network and the disk: a dozen types
        raise UserError(
            f"{name} is not a local folder and can't be fetched from the hub ({first_line(error)}); check its name."
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no such file. Raises UserError on anything else."""
    if not path.is_file():
        return {}
    try:
        facts = load_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable JSON ({first_line(error)}); fetch the checkpoint again.") from error
    if not isinstance(facts, dict):
        raise UserError(f"{path} is not a JSON object; fetch the checkpoint again.")
    return facts


def read_config(path: Path) -> dict[str, Any]:
    """A config, each of its numbers within bounds; empty where there is no such file. Raises UserError."""
    config = read_json(path)
    check_sizes(config, path)
    return config


def image_processor(folder: Path) -> dict[str, Any]:
    """What a folder's image processor says, in the file of older or of newer transformers. Raises UserError."""
    both = read_json(folder / "processor_config.json").get("image_processor")
    return read_json(folder / "preprocessor_config.json") or (both if isinstance(both, dict) else {})


def read_tensors(folder: Path, file: str, name: str) -> dict[str, Tensor]:
    """The tensors of a folder's safetensors file, or of the shards that its index lists, without wrappers' prefixes.

    Raises UserError, which names the checkpoint as `name`.
    """
    index = read_json(folder / f"{file}.index.json").get("weight_map")
    try:
        files = sorted(set(index.values())) if isinstance(index, dict) else [file]
        tensors: dict[str, Tensor] = {}
        for part in files:
            if part == ".." or "/" in part or "\\" in part:
                raise UserError(
                    f"{name}: {file}.index.json names {part!r}, which may lie outside its folder; fetch it again."
                )
            if not (folder / part).is_file():  # to open a pipe would wait for ever
                raise FileNotFoundError(f"there is no file {part}")
            tensors |= load_file(folder / part)
    except (OSError, SafetensorError, TypeError) as error:
        raise UserError(
            f"{name} can't be read ({first_line(error)}); fetch it again, with its safetensors ({file})."
        ) from error
    return {WRAPPERS.sub("", key): tensor for key, tensor in tensors.items()}


def rename(name: str, rules: Iterable[tuple[str, str]]) -> str:
    """The name after every rule (pattern, replacement), in turn."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
