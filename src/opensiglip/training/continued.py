"""Going on from another run: its weights, optimizer and schedule, with images of another size, other patches or NaFlex.

SigLIP 2 resumes at 95 % of training for each higher resolution, with all losses (Sec. 2.4.1), and at 90 % for NaFlex
(Sec. 2.4.2): a low learning rate after the end "did not lead to good results across all sizes".
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from opensiglip.checkpoints.manifest import Damaged, damaged, read_state
from opensiglip.checkpoints.run_folder import RunFolder, learner_of, optimizer_of
from opensiglip.errors import UserError, first_line
from opensiglip.models.limits import refuse_not_finite
from opensiglip.models.resize import resize_tensor, stretch_positions
from opensiglip.training.checkpoint import by_parameter, restored
from opensiglip.training.idle_terms import new_terms, without_terms
from opensiglip.training.learner import Learner
from opensiglip.training.longer_texts import POSITIONS, ShortTexts
from opensiglip.training.optimizers.make import fresh
from opensiglip.training.record import run_of
from opensiglip.training.sharding import cut, local

TEXT = "model.text."  # of a learner


@dataclass(frozen=True)
class Origin:
    """A checkpoint of another run."""

    run: Path
    checkpoint: Path
    progress: float  # share of the training that it has behind it


def origin(name: str, share: float) -> Origin:
    """Of a run's folder its checkpoint at `share` of training; of RUN/checkpoints/step-N that one. Raises UserError."""
    path, run = Path(name), run_of(name)
    if path != run:
        return Origin(run, path, _state(path)[1])
    found = {place: _state(place) for place in RunFolder(run).complete()}
    for place, (step, progress) in found.items():
        if 0 <= share - progress + 1e-9 < progress / step:  # the last step within the share
            return Origin(run, place, progress)
    there = ", ".join(f"{progress:.1%}" for _, progress in found.values()) or "nowhere"
    raise UserError(
        f"--continue-from {name} is at {share:.0%} of training, and that run has checkpoints at {there}: train it with "
        f"--keep {share:g}, or name one of its checkpoints."
    )


class Taken(NamedTuple):
    """What was not taken over as it was: tensors that were resized, and objectives that the other run did not have."""

    resized: list[str]
    new: set[str]


def take_over(origin: Origin, learner: Learner, optimizer: torch.optim.Optimizer, short: ShortTexts | None) -> Taken:
    """Give the learner the checkpoint's weights and the optimizer its state.

    What the learner lacks (the teacher and its heads, for NaFlex) is left behind. Objectives of which the checkpoint
    has nothing begin fresh, their teacher as a copy of the tower. Positions of images are resized bilinearly, those of
    longer texts as `ShortTexts` says, or only stretched without one, patch kernels by FlexiViT's pseudo-inverse. These
    tensors' optimizer state starts fresh, as that of another optimizer does: the papers do not say, so this is ours.
    Raises UserError naming a tensor that is missing or fits by no rule.
    """
    try:
        old = load_file(learner_of(origin.checkpoint))
        moments = load_file(optimizer_of(origin.checkpoint))
    except (OSError, SafetensorError) as error:
        raise damaged(origin.checkpoint, first_line(error)) from error
    refuse_not_finite(f"checkpoint {origin.checkpoint}", old | moments, "continue from an earlier one")
    new = new_terms(learner, old)
    wanted = without_terms(learner, new)
    missing = next((name for name in wanted if name not in old), None)
    if missing is not None:
        raise UserError(
            f"--continue-from {origin.run} has no {missing}: the recipe must have the networks of that run, or fewer."
        )
    weights = {name: fitted(name, old[name], like) for name, like in wanted.items()}
    if short is not None and (name := f"{TEXT}{POSITIONS}") in weights:
        before = {key.removeprefix(TEXT): x for key, x in old.items() if key.startswith(TEXT)}
        place = local(wanted[name]).device
        weights[name] = short.keep(learner.model.text, before, weights[name], place)
    weights = {name: cut(weights[name], like) for name, like in wanted.items()}
    learner.load_state_dict(weights, strict=False)
    learner.start_teachers(new)
    states = by_parameter(moments)
    for name, parameter in learner.named_parameters():
        own, state = states.get(name, {}), fresh(optimizer, parameter)
        if own.keys() == state.keys() and all(own[key].numel() == like.numel() for key, like in state.items()):
            values = {key: fitted(name, own[key], like) if like.ndim else own[key] for key, like in state.items()}
            optimizer.state[parameter] = restored(state, values)
    return Taken([name for name, like in wanted.items() if old[name].numel() != like.numel()], new)


def fitted(name: str, tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor of a checkpoint in the shape of `like`. Raises UserError where there is no rule."""
    found = stretch_positions(name, resize_tensor(name, tensor, like), like)
    if found.shape != like.shape:
        raise UserError(
            f"--continue-from: {name} is {list(tensor.shape)} there and {list(like.shape)} here, so no rule fits; "
            "give the same size and decoder, and no smaller length."
        )
    return found


def _state(checkpoint: Path) -> tuple[int, float]:
    """Steps taken, and the share of training they are."""
    try:
        state = read_state(checkpoint)
        return state["step"], state["progress"]
    except (Damaged, KeyError) as error:
        raise UserError(f"checkpoint {checkpoint} does not say how far it is ({error}); name another one.") from error
