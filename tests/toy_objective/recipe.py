"""A recipe of a user's own: SigLIP, and later the toy objective."""

from pathlib import Path
from typing import Annotated

from opensiglip import data, objectives
from opensiglip.bounds import Bounds
from opensiglip.models.sizes import architecture
from opensiglip.recipes.recipe import Recipe
from opensiglip.user_file import load

OBJECTIVE = Path(__file__).with_name("objective.py")


def toy_objective(
    *,
    size: str = "B/16",
    resolution: Annotated[int | None, Bounds(at_least=1)] = None,
    length: Annotated[int, Bounds(at_least=8)] = 64,
    crop_area: Annotated[float, Bounds(more_than=0, at_most=1)] = 1.0,
    logit_bias: str = "-10",
    decay: Annotated[float, Bounds(at_least=0, less_than=1)] = 0.9,
) -> Recipe:
    """A toy: SigLIP, and from a quarter of training on the caption's tokens from the pooled image.    (a test)

    Args:
        size: tiny, S/16, B/16, ...
        resolution: pixels of a side; by default 256 patches (tiny: 64 pixels).
        length: tokens per text.
        crop_area: smallest share of the image that a random crop keeps; 1 is no crop.
        logit_bias: where the sigmoid's bias starts: -10, another number, or auto.
        decay: of the running frequency of tokens; 0 is that of the last batch.
    """
    networks = architecture(size, resolution, length=length, text=True)
    frame = data.Frame(networks.resolution, crop_area)
    tokens = load("objective", str(OBJECTIVE), "CaptionTokens")
    return Recipe(
        networks,
        frame,
        fields=[data.Images(frame), data.Texts()],
        objectives=[objectives.Sigmoid(logit_bias=logit_bias), tokens(decay=decay, start=0.25)],
    )
