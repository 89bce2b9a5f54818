"""`fit`: a checkpoint's weights into a model, by a rule where a shape differs, in one sentence where there is none."""

from dataclasses import dataclass

import torch

from opensiglip.checkpoints.checkpoint import Checkpoint
from opensiglip.errors import UserError
from opensiglip.models.model import Model
from opensiglip.models.resize import resize_tensor

# A part that one side has whole and the other lacks whole starts fresh, or is left out; the first that fits counts.
PARTS = {
    "vision.tower.head.": "the image tower's pooling",
    "vision.": "the image tower",
    "text.": "the text tower",
    "decoder.": "the decoder",
    "logit_": "temperature and bias",
}


@dataclass(frozen=True)
class Fitted:
    """What came of it, in words for the start-up lines, and the names of what the checkpoint brought."""

    brought: frozenset[str]
    fresh: tuple[str, ...]
    left_out: tuple[str, ...]
    resized: tuple[str, ...]


@torch.no_grad()
def fit(model: Model, checkpoint: Checkpoint) -> Fitted:
    """Copy the checkpoint's weights into the model. Raises UserError naming a tensor, both shapes and the mend."""
    own, resized = model.state_dict(), []
    if checkpoint.architecture.encoder is not None and not checkpoint.state:  # timm has loaded them already
        state = {name: tensor for name, tensor in own.items() if name.startswith("vision.")}
    else:
        state = checkpoint.state
    ours, theirs = ({part_of(name) for name in names} for names in (own, state))
    for name in [*own, *state]:
        if name not in state and part_of(name) in theirs:
            raise UserError(f"{checkpoint.name} has no {name}, which {PARTS[part_of(name)]} needs; {MEND}")
        if name not in own and part_of(name) in ours:
            raise UserError(f"{checkpoint.name} has {name}, which our networks do not; {MEND}")
    shared = [
        name for name in own if name in state
    ]  # in the order of the networks, so that a refusal names the same one
    for name in shared:
        value = resize_tensor(name, state[name], own[name])
        if value.shape != own[name].shape:
            was, wanted = list(state[name].shape), list(own[name].shape)
            raise UserError(f"{checkpoint.name}: {name} is {was} and has to be {wanted}; {MEND}")
        if state[name].numel() != value.numel():
            resized.append(f"{name.split('.')[-2]} {list(state[name].shape)} -> {list(value.shape)}")
        own[name].copy_(value)
    return Fitted(
        frozenset(shared),
        tuple(words for part, words in PARTS.items() if part in ours - theirs),
        tuple(words for part, words in PARTS.items() if part in theirs - ours),
        tuple(resized),
    )


def assemble(checkpoint: Checkpoint) -> Model:
    """The checkpoint's own networks with its weights."""
    model = Model.new(checkpoint.architecture, checkpoint.vocabulary)
    fit(model, checkpoint)
    return model


MEND = "leave out --size, --resolution, --length and --decoder-*, which then follow the checkpoint."


def part_of(name: str) -> str:
    """The entry of `PARTS` that a tensor belongs to."""
    return next((part for part in PARTS if name.startswith(part)), "vision.")
