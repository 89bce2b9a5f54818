"""Frozen towers that are judged again and again: what they make of a batch is kept, only heads run anew."""

import os
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from opensiglip.inference.predictor import Predictor
from opensiglip.models.pretrained_towers import PretrainedText, PretrainedVision, is_frozen
from opensiglip.types import Features, TowerStates


class Memory:
    """States by key: in this process, and with `folder` on disk, where other runs find them."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder, self.kept = folder, dict[str, Tensor]()

    def once(self, key: str, make: Callable[[], Tensor]) -> Tensor:
        """What `make` gave for that key, in this run or in one before."""
        if key not in self.kept:
            path = None if self.folder is None else self.folder / f"{key}.safetensors"
            found = None if path is None else _read(path)
            if found is None:
                found = make()
                if path is not None:
                    _write(path, found)
            self.kept[key] = found.cpu()
        return self.kept[key]


class Remembered:
    """A frozen tower under a head. Equal batches give equal states, of which `most` an example are kept (None: all)."""

    def __init__(self, tower: PretrainedVision | PretrainedText, memory: Memory, most: int | None = None) -> None:
        self.tower, self.memory, self.most = tower, memory, most

    def __call__(self, batch: Tensor) -> Features:
        kind = torch.get_autocast_dtype(batch.device.type) if torch.is_autocast_enabled(batch.device.type) else "plain"
        key = hashed(f"{self._weights} {kind} {self.most} {tuple(batch.shape)}", batch)
        states = self.memory.once(key, lambda: self.tower.read(batch)[:, : self.most])
        found: Features = self.tower(TowerStates(states.to(batch.device)))
        return found

    @cached_property
    def _weights(self) -> str:
        """A hash of all that `read` depends on beside the batch."""
        tower = self.tower
        reading = (tower.pooling, tower.pad_id) if isinstance(tower, PretrainedText) else (tower.prefix, tower.summary)
        pixels = [] if isinstance(tower, PretrainedText) else [tower.mean, tower.std]
        return hashed(f"{tower.tower.config!r} {reading}", *pixels, *tower.tower.state_dict().values())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tower, name)


def remembering(predictor: Predictor, memory: Memory) -> Predictor:
    """The same predictor, whose frozen towers of another make read every batch once.

    Where neither head nor decoder reads patch tokens, there are none.
    """
    model, parts = predictor.pretrained.model, dict[str, Any]()
    if isinstance(model.vision, PretrainedVision) and is_frozen(model.vision.tower):
        head = model.vision.head
        alone = head is not None and not head.reads_patches and model.decoder is None and model.pali is None
        parts["vision"] = Remembered(model.vision, memory, model.vision.summary if alone else None)
    if isinstance(model.text, PretrainedText) and is_frozen(model.text.tower):
        parts["text"] = Remembered(model.text, memory)
    return predictor.with_parts(**parts) if parts else predictor


def hashed(facts: str, *tensors: Tensor) -> str:
    """A hash of a few facts and of tensors' bytes."""
    digest = xxhash.xxh3_128(facts.encode())
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _write(path: Path, states: Tensor) -> None:
    """Keep states in a file for other runs; a disk that does not take them is no reason to stop."""
    part = path.with_name(f"{path.stem}.{os.getpid()}.part")  # of this run: another may be writing the same
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"states": states.contiguous().cpu()}, part)
        part.replace(path)
    except (OSError, SafetensorError):
        with suppress(OSError):
            part.unlink()


def _read(path: Path) -> Tensor | None:
    """The states in a file; None where there is none, or it is damaged."""
    try:
        return load_file(path)["states"]
    except (OSError, KeyError, SafetensorError):
        return None
