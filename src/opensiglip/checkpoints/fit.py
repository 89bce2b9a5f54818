"""Weights by name into networks: a checkpoint's own, where none may lack, or a recipe's, where parts may be fresh."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from opensiglip.checkpoints.contents import Contents
from opensiglip.errors import UserError
from opensiglip.models.limits import check_sizes
from opensiglip.models.model import Model
from opensiglip.models.resize import resize_tensor, stretch_positions
from opensiglip.models.sizes import Architecture

# A part that one side has whole and the other lacks whole starts fresh, or is left out; the first that fits counts.
PARTS = {
    "vision.tower.head.": "the image tower's pooling",
    "vision.": "the image tower",
    "text.": "the text tower",
    "decoder.": "the decoder",
    "pali.": "the T5",
    "logit_": "temperature and bias",
}
OURS = "OpenSigLIP"  # the format of what we trained
MEND = "leave out --size, --resolution, --length and --decoder-*, which then follow the checkpoint."


@torch.no_grad()
def assemble(name: str, state: Mapping[str, Tensor], architecture: Architecture, vocabulary: int) -> Model:
    """A checkpoint's own networks with its weights, all of them its own; tensors that no network has are named once.

    Raises UserError naming the first tensor that is missing or of another shape.
    """
    check_sizes(architecture.to_json() | {"vocabulary": vocabulary}, name)
    with torch.device("meta"):
        skeleton = Model.new(architecture, vocabulary)
    own = skeleton.state_dict()
    if missing := [key for key in own if key not in state]:
        raise UserError(
            f"{name} has no {missing[0]}, which {PARTS[part_of(missing[0])]} needs ({len(missing)} of {len(own)} "
            "tensors are missing); fetch or save it again, whole."
        )
    for key, value in own.items():
        if state[key].shape != value.shape:
            raise UserError(
                f"{name}: {key} is {list(state[key].shape)}, and its config says {list(value.shape)}; fetch it again."
            )
    with torch.random.fork_rng(devices=[]):  # whoever opens a model keeps their own random numbers
        model = Model.new(architecture, vocabulary)
    for key, value in model.state_dict().items():
        value.copy_(state[key])
    if extra := [key for key in state if key not in own]:
        warnings.warn(
            f"{name} has {extra[0]}{f' and {len(extra) - 1} more' if extra[1:] else ''}, which its networks have no "
            "place for; left out.",
            stacklevel=3,
        )
    return model.eval()


@dataclass(frozen=True)
class Fitted:
    """What came of it, in words for the start-up lines, and the names of what the checkpoint brought."""

    brought: frozenset[str]
    fresh: tuple[str, ...]
    left_out: tuple[str, ...]
    resized: tuple[str, ...]


@torch.no_grad()
def fit(model: Model, checkpoint: Contents) -> Fitted:
    """Copy the checkpoint's weights into the model. Raises UserError naming a tensor, both shapes and the mend.

    Positions of an official checkpoint of fixed resolution are resized as big_vision does it, all others as NaFlex;
    those of texts are stretched where texts grow.
    """
    own, state, resized = model.state_dict(), checkpoint.model.state_dict(), []
    corner_aligned = checkpoint.format != OURS and not checkpoint.model.architecture.naflex
    ours, theirs = ({part_of(name) for name in names} for names in (own, state))
    for name in [*own, *state]:
        if name not in state and part_of(name) in theirs:
            raise UserError(f"{checkpoint.name} has no {name}, which {PARTS[part_of(name)]} needs; {MEND}")
        if name not in own and part_of(name) in ours:
            raise UserError(f"{checkpoint.name} has {name}, which our networks lack; {MEND}")
    shared = [name for name in own if name in state]  # in the order of the networks: a refusal names the same one
    for name in shared:
        value = resize_tensor(name, state[name], own[name], corner_aligned=corner_aligned)
        value = stretch_positions(name, value, own[name])
        if value.shape != own[name].shape:
            was, wanted = list(state[name].shape), list(own[name].shape)
            raise UserError(f"{checkpoint.name}: {name} is {was} and must be {wanted}; {MEND}")
        if state[name].numel() != value.numel():
            resized.append(f"{name.split('.')[-2]} {list(state[name].shape)} -> {list(value.shape)}")
        own[name].copy_(value)
    # A bias that no loss has trained is none: a softmax does not feel it.
    untrained = set() if checkpoint.model.architecture.logit_bias else {"logit_bias"}
    return Fitted(
        frozenset(shared) - untrained,
        tuple(words for part, words in PARTS.items() if part in ours - theirs),
        tuple(words for part, words in PARTS.items() if part in theirs - ours),
        tuple(resized),
    )


def part_of(name: str) -> str:
    """The entry of `PARTS` that a tensor belongs to."""
    return next((part for part in PARTS if name.startswith(part)), "vision.")
