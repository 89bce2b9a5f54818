"""Checkpoints: every tensor in safetensors by name, the rest in JSON; no pickle. Written whole, with a manifest."""

import math
import shutil
from collections.abc import Callable, Collection, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from opensiglip.checkpoints.manifest import damaged, read_state, write_manifest
from opensiglip.checkpoints.run_folder import DAMAGED, PART, RunFolder, learner_of, optimizer_of, state_of
from opensiglip.disk import refusals, whole_file, whole_folder
from opensiglip.errors import UserError, first_line
from opensiglip.json_file import write_json
from opensiglip.models.limits import refuse_not_finite
from opensiglip.models.lora import merged
from opensiglip.models.model import Model
from opensiglip.training.idle_terms import new_terms, of_terms, without_terms
from opensiglip.training.learner import Learner
from opensiglip.training.optimizers.make import fresh
from opensiglip.training.sharding import cut, gather

Tensors = dict[str, Tensor]


def save(
    run: RunFolder,
    step: int,
    weights: Tensors,
    moments: Tensors,
    state: Mapping[str, Any],
    describe: Callable[[Path], None],
) -> Path:
    """Write the run's checkpoint after `step` steps: the tensors of `tensors`, and by `describe` tokenizer and sidecar.

    Raises UserError where the disk refuses it; what is there already stays as it is.
    """
    final, newest = run.checkpoint(step), run.newest()
    need = sum(tensor.nbytes for tensor in [*weights.values(), *moments.values()])
    mend = (
        f"make room and go on with --resume, from {newest}" if newest else "make room and start the run again as it is"
    )
    with refusals(final, mend, need), whole_folder(final) as part:
        save_file(weights, learner_of(part))
        save_file(moments, optimizer_of(part))
        describe(part)
        write_json(state_of(part), {"step": step} | dict(state))
        write_manifest(part, step)
    return final


def tensors(learner: Learner, optimizer: torch.optim.Optimizer, keep: bool = True) -> tuple[Tensors, Tensors]:
    """Weights, and the optimizer's state by PARAMETER/KEY: whole, on the CPU, where `keep`. Called on all ranks."""
    moments = {
        f"{name}/{key}": torch.as_tensor(value)
        for name, parameter in learner.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    return gather(learner.state_dict(), keep), gather(moments, keep)


def prune(run: RunFolder, last: int, keep: Collection[int]) -> None:
    """Remove all checkpoints but the newest `last` and those of the steps in `keep`."""
    kept = [run.checkpoint(step) for step in keep]
    for old in run.complete()[:-last]:
        if old not in kept:
            shutil.rmtree(old)


def sweep(run: RunFolder) -> None:
    """Remove what a killed process had half written."""
    for place in (run.path, run.checkpoints, run.stages):
        for part in place.glob(f"*{PART}"):
            if part.is_dir():
                shutil.rmtree(part)
            else:
                part.unlink()


def set_aside(run: RunFolder, saved: Path) -> None:
    """Give the checkpoints after `saved`, which were passed over, a name by which they count no more."""
    for path in run.complete():
        if path.name > saved.name:
            aside = path.with_name(path.name + DAMAGED)
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)


def save_stage(run: RunFolder, step: int, model: Model) -> None:
    """Write the model as it is when a later part of the recipe begins."""
    path, weights = run.stage(step), gather(merged(model).state_dict())
    path.parent.mkdir(exist_ok=True)
    need = sum(tensor.nbytes for tensor in weights.values())
    with refusals(path, "make room and go on with --resume", need), whole_file(path) as part:
        save_file(weights, part)


def stages(run: RunFolder, model: Model) -> dict[str, Model]:
    """The models that `save_stage` wrote, by how far they had come; `model` says how they are built.

    One that can't be read is left out, which is said.
    """
    found = {}
    for step, path in run.written_stages().items():
        stage = deepcopy(model)
        try:
            stage.load_state_dict(load_file(path))
        except (OSError, SafetensorError, RuntimeError) as error:
            print(f"{path} can't be read ({first_line(error)}): the report leaves it out.", flush=True)
            continue
        found[f"after {step} steps"] = stage
    return found


def load(
    path: Path, learner: Learner, optimizer: torch.optim.Optimizer, begin: int = 0
) -> tuple[dict[str, Any], set[str]]:
    """Restore weights and optimizer in place, once all names, shapes and steps fit.

    Returns the state, and the objectives of which the checkpoint has nothing: they begin fresh.

    begin: the step at which the run took over another's optimizer, whose steps it counts on. Raises UserError naming
    what does not fit, and Damaged on files that can't be read.
    """
    state = read_state(path)
    try:
        weights, moments = load_file(learner_of(path)), load_file(optimizer_of(path))
    except (OSError, SafetensorError) as error:
        raise damaged(path, first_line(error)) from error
    new = new_terms(learner, weights)
    own, weights = without_terms(learner, new), of_terms(learner, weights)
    _check_names(path, weights.keys(), own.keys())
    for name, tensor in own.items():
        _check_shape(path, name, weights[name], tensor)
    mend = "delete that folder, and --resume continues from the one before"
    refuse_not_finite(f"checkpoint {path}", weights | moments, mend)
    parameters = dict(learner.named_parameters())
    states = by_parameter(moments)
    _check_names(path, states.keys() | parameters.keys(), parameters.keys())
    for name, found in states.items():
        wanted = fresh(optimizer, parameters[name])
        _check_names(path, [f"{name}/{key}" for key in found], [f"{name}/{key}" for key in wanted])
        for key, tensor in found.items():
            _check_shape(path, f"{name}/{key}", tensor, wanted[key])
        if "step" in found and not 1 <= float(found["step"]) <= (math.inf if begin else state["step"]):
            raise UserError(
                f"checkpoint {path} is of step {state['step']}, its {name}/step of {float(found['step']):g}."
            )
    if not states and state["step"] > state["skipped_steps"]:
        raise UserError(
            f"checkpoint {path} has an optimizer without state after {state['step']} steps; continue from another."
        )
    learner.load_state_dict({name: cut(weights[name], like) for name, like in own.items()}, strict=False)
    learner.start_teachers(new)
    for name, found in states.items():
        optimizer.state[parameters[name]] = restored(fresh(optimizer, parameters[name]), found)
    return state, new


def restored(state: Tensors, values: Mapping[str, Tensor]) -> Tensors:
    """An optimizer's `fresh` state of a parameter with the whole `values`: each on its device, this rank's slice."""
    return {key: like.copy_(cut(values[key].to(like.device), like)) for key, like in state.items()}


def by_parameter(moments: Tensors) -> dict[str, Tensors]:
    """The optimizer's tensors of each parameter, from their names PARAMETER/KEY."""
    states: dict[str, Tensors] = {}
    for key, tensor in moments.items():
        name, _, what = key.rpartition("/")
        states.setdefault(name, {})[what] = tensor
    return states


def _check_names(path: Path, found: Collection[str], wanted: Collection[str]) -> None:
    lacks, more = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if lacks or more:
        wrong = f"lacks {lacks[0]}" if lacks else f"has {more[0]}, which these networks have not"
        raise UserError(f"checkpoint {path} {wrong}: it is of another recipe or size; give the run's own arguments.")


def _check_shape(path: Path, name: str, found: Tensor, like: Tensor) -> None:
    if found.shape != like.shape:
        raise UserError(
            f"checkpoint {path} has {name} as {list(found.shape)}, here it is {list(like.shape)}: it is of another "
            "size or vocabulary; give the run's own arguments."
        )
