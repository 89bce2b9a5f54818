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

from opensiglip.checkpoints.run_folder import RunFolder, learner_of, optimizer_of, state_of
from opensiglip.errors import UserError
from opensiglip.json_file import write_json
from opensiglip.models.lora import merged
from opensiglip.models.model import Model
from opensiglip.training.learner import Learner

KEPT = 2  # newest checkpoints that stay


def save(
    run: RunFolder,
    step: int,
    learner: Learner,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    keep: Collection[int] = (),
) -> Path:
    """Write the run's checkpoint after `step` steps.

    Older ones beyond the newest two are removed after, but for those of the steps in `keep`.
    """
    final = run.checkpoint(step)
    part = final.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_file(_own_storage(learner.state_dict()), learner_of(part))
    save_file(_own_storage(_moments(learner, optimizer)), optimizer_of(part))
    write_json(state_of(part), {"step": step} | state)
    for file in part.iterdir():  # the rename must not reach the disk before the content
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    shutil.rmtree(final, ignore_errors=True)
    part.rename(final)
    kept = [run.checkpoint(step) for step in keep]
    for old in run.complete()[:-KEPT]:
        if old not in kept:
            shutil.rmtree(old)
    return final


def save_stage(run: RunFolder, step: int, model: Model) -> None:
    """Write the model as it is when a later part of the recipe begins."""
    path = run.stage(step)
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(".part")
    save_file(_own_storage(merged(model).state_dict()), part)
    part.replace(path)


def stages(run: RunFolder, model: Model) -> dict[str, Model]:
    """The models that `save_stage` wrote, by how far they had come; `model` says how they are built."""
    found = {}
    for step, path in run.written_stages().items():
        found[f"after {step} steps"] = stage = deepcopy(model)
        stage.load_state_dict(load_file(path))
    return found


def load(path: Path, learner: Learner, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore weights and optimizer in place; return the state. Raises UserError naming what does not fit."""
    try:
        state: dict[str, Any] = json.loads(state_of(path).read_text(encoding="utf-8"))
        learner.load_state_dict(load_file(learner_of(path)))
        moments = load_file(optimizer_of(path))
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
