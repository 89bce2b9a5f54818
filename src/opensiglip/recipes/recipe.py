"""A recipe: networks, fields, objectives. What a recipe function returns is all the trainer knows of a paper."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from opensiglip.data.boxes import BoxFormat
from opensiglip.data.fields.field import Field
from opensiglip.data.fields.frame import Geometry
from opensiglip.errors import UserError
from opensiglip.models.sizes import Architecture
from opensiglip.objectives.base import Objective


@dataclass(frozen=True)
class Recipe:
    """One paper's loss: `fields` of the batch, and the `objectives` that read them."""

    architecture: Architecture
    frame: Geometry
    fields: list[Field]
    objectives: list[Objective]
    tasks: tuple[str, ...] = ()  # what the decoder is trained on
    boxes: BoxFormat = BoxFormat()  # how it writes boxes
    logit_bias: str = "-10"  # a number, or "auto"
    momentum: float = 0.996  # of the teacher, where objectives have one
    momentum_end: float | None = None  # where it goes along a cosine; None: fixed
    share: float = 0.95  # of another run's training, after which this goes on from it    (SigLIP 2, Sec. 2.4.1)
    stretch: float = 1.0  # how many steps it then takes for each that was left

    def bias(self, batch_size: int) -> float:
        """Where the sigmoid's bias starts. "auto" is log(p / (1 - p)) at p = 1 / batch: the share of pairs that match.

        SigLIP's -10 suits batches of 32k (log(1/22k) = -10); small batches need less. Raises UserError.
        """
        if self.logit_bias == "auto":
            return -math.log(max(1, batch_size - 1))
        try:
            bias = float(self.logit_bias)
        except ValueError:
            bias = math.nan
        if not math.isfinite(bias):
            raise UserError(f"--logit-bias {self.logit_bias!r} is neither a number nor auto.")
        return bias


RecipeFunction = Callable[..., Recipe]
