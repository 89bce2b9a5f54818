"""Checkpoints: every tensor in safetensors by name, the rest in JSON; no pickle. Written whole or not at all."""

import json
import os
import shutil
from collections.abc import Collection
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from opensiglip.checkpoints.unfinished import complete
from opensiglip.errors import UserError
from opensiglip.json_file import write_json
from opensiglip.models.lora import merged
from opensiglip.models.model import Model
from opensiglip.training.learner import Learner

KEPT = 2  # newest checkpoints that stay


def save(
    folder: Path,
    step: int,
    learner: Learner,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    keep: Collection[int] = (),
) -> Path:
    """Write checkpoints/step-N: `step` steps have been taken.

    Older ones beyond the newest two are removed after, but for those of the steps in `keep`.
    """
    final, part = place(folder, step), folder / f"step-{step:08d}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_file(_own_storage(learner.state_dict()), part / "learner.safetensors")
    save_file(_own_storage(_moments(learner, optimizer)), part / "optimizer.safetensors")
    write_json(part / "state.json", {"step": step} | state)
    for file in part.iterdir():  # the rename must not reach the disk before the content
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    shutil.rmtree(final, ignore_errors=True)
    part.rename(final)
    kept = [place(folder, step) for step in keep]
    for old in complete(folder)[:-KEPT]:
        if old not in kept:
            shutil.rmtree(old)
    return final


def save_stage(folder: Path, step: int, model: Model) -> None:
    """Write stages/step-N.safetensors: the model as it is when a later part of the recipe begins."""
    folder.mkdir(exist_ok=True)
    path = folder / f"step-{step:08d}.safetensors"
    part = path.with_suffix(".part")
    save_file(_own_storage(merged(model).state_dict()), part)
    part.replace(path)


def stages(folder: Path, model: Model) -> dict[str, Model]:
    """The models that `save_stage` wrote, by how far they had come; `model` says how they are built."""
    found = {}
    for path in sorted(folder.glob("step-*.safetensors")):
        found[f"after {int(path.stem.removeprefix('step-'))} steps"] = stage = deepcopy(model)
        stage.load_state_dict(load_file(path))
    return found


def place(folder: Path, step: int) -> Path:
    """Where the checkpoint after so many steps lies."""
    return folder / f"step-{step:08d}"


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint, or None."""
    return next(reversed(complete(folder)), None)


def load(path: Path, learner: Learner, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore weights and optimizer in place; return the state. Raises UserError naming what does not fit."""
    try:
        state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
        learner.load_state_dict(load_file(path / "learner.safetensors"))
        moments = load_file(path / "optimizer.safetensors")
    except (OSError, ValueError, SafetensorError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"checkpoint {path} can't be read ({reason}); delete that folder to resume before it."
        ) from error
    for name, parameter in learner.named_parameters():
        own = {key.rpartition("/")[2]: value for key, value in moments.items() if key.rpartition("/")[0] == name}
        if own:
            optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device) for key, value in own.items()
            }
    return state


def _moments(learner: Learner, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": torch.as_tensor(value)
        for name, parameter in learner.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _own_storage(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
