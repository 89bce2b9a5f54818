"""`--resolution 112@0,224@0.8`, `--length 16@0,64@0.8`: images and texts that are small at first.    (CLIPA)"""

from dataclasses import replace
from typing import TYPE_CHECKING

from opensiglip import data
from opensiglip.data.size_schedule import SizeSchedule
from opensiglip.errors import UserError
from opensiglip.models.sizes import Architecture
from opensiglip.recipes.recipe import Recipe

if TYPE_CHECKING:  # as in recipe.py
    from opensiglip.data.fields.field import Field


def grown(recipe: Recipe, resolutions: SizeSchedule | None, lengths: SizeSchedule | None) -> Recipe:
    """The recipe, which has the last sizes, on smaller images and shorter texts before. Raises UserError.

    The networks are those of the last sizes; before, towers read their positions resized, or the first and the last.
    """
    if lengths is not None:
        recipe = replace(recipe, lengths=lengths)
    if resolutions is None:
        return recipe
    frame, patch = recipe.frame, recipe.architecture.patch
    if not isinstance(frame, data.Frame):
        raise UserError(
            "--resolution: a NaFlex recipe draws a size for each batch from --budgets; give one resolution, "
            f"{resolutions.last}."
        )
    for size in resolutions.sizes:
        if size % patch or size < patch:
            raise UserError(
                f"--resolution {size} is not a multiple of the patch size {patch}; try {max(1, size // patch) * patch}."
            )
    fields = [one for field in recipe.fields for one in _in_turn(field, resolutions)]
    growing = data.GrowingFrame(
        frame.resolution, frame.crop_area, frame.interpolation, frame.flip, schedule=resolutions
    )
    return replace(recipe, frame=growing, fields=fields)


def _in_turn(field: "Field", resolutions: SizeSchedule) -> "list[Field]":
    """A field for each size of images that it sees, where it hangs on their size."""
    found = []
    for size, begin, end in resolutions.spans():
        one = field.resized(size)
        if one is field:
            return [field]
        one.start, one.end = max(field.start, begin), field.end if end == 1 else min(field.end, end)
        if one.start < one.end:
            found.append(one)
    return found


def check_growth(recipe: Recipe) -> None:
    """Raises UserError where the image tower, once known, reads one size only."""
    if recipe.frame.starts and reads_one_size(recipe.architecture):
        raise UserError("--resolution: an image tower of timm, of CLIP or of --vision reads one size; give one number.")


def reads_one_size(networks: Architecture) -> bool:
    """Are the image tower's positions those of one size alone?"""
    foreign = networks.foreign
    other = networks.encoder is not None or (foreign is not None and foreign.vision is not None)
    return other or (networks.coca is not None and networks.coca.clip)
