"""`Contents`: what every reader of a format gives, and every writer takes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opensiglip.data.boxes import BoxFormat
from opensiglip.data.fields.frame import Frame, Geometry
from opensiglip.data.fields.naflex import NaFlex
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.models.sizes import Architecture, Shape

MOST_PATCHES = 2**16  # of an image: 4096 x 4096 pixels of patches of 16
ACTIVATIONS = ("gelu_pytorch_tanh", "gelu")  # big_vision's gelu is the approximate one; some ports take the exact


@dataclass(frozen=True)
class Contents:
    """A trained model, on the CPU and in eval mode, and what it takes to use it.

    `model` is a `Model`, or another library's behind the same attributes: vision, text, decoder, pali, logit_scale,
    logit_bias (None where a softmax compares), architecture, vocabulary. `vision.to_text`, where a tower has it, brings
    patches into the texts' space.
    """

    name: str  # as it was asked for, for messages
    model: Any
    frame: Geometry  # how images are shown to it
    format: str  # what it was read from, in words
    pipeline: TextPipeline | None = None  # None without text tower and decoder, or where the tokenizer is missing
    boxes: BoxFormat | None = None
    tasks: tuple[str, ...] = ()  # what its decoder was trained to write: "cap", "aref", "gcap"
    languages: tuple[str, ...] = ()  # of its training, where known
    card: Mapping[str, Any] = field(default_factory=dict)  # what a model card says of its training, where it is ours


def frame_of(networks: Architecture, most: int | None = None) -> Geometry:
    """How images are shown to these networks: squashed to their square, or in their own aspect ratio by NaFlex.

    `most`: patches of an image that a NaFlex model sees; by default those of its table of positions.
    """
    if not networks.naflex:
        return Frame(networks.resolution, interpolation=networks.interpolation)
    most = most or (networks.resolution // networks.patch) ** 2
    return NaFlex(networks.patch, most, (most,))


def most_patches(place: Path) -> int | None:
    """How many patches of an image the NaFlex image processor of a folder takes; None without one.

    Raises UserError on a number that is none.
    """
    from transformers import Siglip2ImageProcessor

    try:
        most = Siglip2ImageProcessor.from_pretrained(place).max_num_patches
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if not (isinstance(most, int) and 1 <= most <= MOST_PATCHES):
        raise UserError(f"{place} has an image processor of {most!r} patches; give 1 to {MOST_PATCHES}.")
    return most


def shape(width: int, depth: int, mlp: int, heads: int, activation: str, where: str) -> Shape:
    """A tower's shape. Raises UserError on an activation our towers do not have."""
    if activation not in ACTIVATIONS:
        raise UserError(f"{where} has the activation {activation!r}; our towers have {' and '.join(ACTIVATIONS)}.")
    return Shape(width, depth, mlp, heads, activation)
