"""`Recipe`: networks, fields and objectives. It is all that the trainer knows of a paper."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opensiglip.data.boxes import BoxFormat
from opensiglip.data.size_schedule import SizeSchedule
from opensiglip.models.sizes import Architecture

if TYPE_CHECKING:  # the command line reads a recipe's flags without waiting for torch
    from opensiglip.data.fields.field import Field
    from opensiglip.data.fields.frame import Geometry
    from opensiglip.objectives.base import Objective


@dataclass(frozen=True)
class Continuation:
    """How a recipe continues another run; by default as in SigLIP 2 for a higher resolution (Sec. 2.4.1)."""

    share: float = 0.95  # fraction of the other run's training at which this one continues it
    stretch: float = 1.0  # steps to take for each step that was left


@dataclass(frozen=True)
class Recipe:
    """One paper's loss: `fields` of the batch, and the `objectives` that read them."""

    architecture: Architecture
    frame: "Geometry"
    fields: "list[Field]"
    objectives: "list[Objective]"
    tasks: tuple[str, ...] = ()  # what the decoder is trained on
    boxes: BoxFormat = BoxFormat()  # format in which it writes boxes
    continuation: Continuation = Continuation()
    freeze_towers: bool = False  # freeze the towers of --vision and --text if --freeze is not given
    lengths: SizeSchedule | None = None  # of texts in tokens, where they grow while training
    filter: float = 0.5  # fraction of a super-batch that --curate leaves out if --filter is not given


RecipeFunction = Callable[..., Recipe]
