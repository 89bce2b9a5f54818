"""A recipe: networks, fields, objectives. What a recipe function returns is all the trainer knows of a paper."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opensiglip.data.boxes import BoxFormat
from opensiglip.models.sizes import Architecture

if TYPE_CHECKING:  # the command line reads a recipe's flags without waiting for torch
    from opensiglip.data.fields.field import Field
    from opensiglip.data.fields.frame import Geometry
    from opensiglip.objectives.base import Objective


@dataclass(frozen=True)
class Continuation:
    """How a recipe goes on from another run: by default as SigLIP 2 does at a higher resolution (Sec. 2.4.1)."""

    share: float = 0.95  # of the other run's training, after which this goes on from it
    stretch: float = 1.0  # how many steps it then takes for each that was left


@dataclass(frozen=True)
class Recipe:
    """One paper's loss: `fields` of the batch, and the `objectives` that read them."""

    architecture: Architecture
    frame: "Geometry"
    fields: "list[Field]"
    objectives: "list[Objective]"
    tasks: tuple[str, ...] = ()  # what the decoder is trained on
    boxes: BoxFormat = BoxFormat()  # how it writes boxes
    continuation: Continuation = Continuation()
    freeze_towers: bool = False  # are towers of --vision and --text left as they are, unless --freeze says otherwise?
    filter: float = 0.5  # share of a super-batch that --curate leaves out, unless --filter says otherwise


RecipeFunction = Callable[..., Recipe]
