"""`--keep-tokens`: the image tower reads only a part of each image's patches for most of training."""

from copy import copy
from dataclasses import replace

from opensiglip.data.fields.captions import Captions
from opensiglip.data.fields.field import Field, Images
from opensiglip.data.fields.kept_tokens import MASKS, KeptTokens
from opensiglip.data.fields.views import Views
from opensiglip.data.tasks.mixture import Mixture
from opensiglip.errors import UserError
from opensiglip.recipes.recipe import Recipe

MASK, FULL_FROM = "random", 0.9  # FLIP's mask; the length of the full-token tail is ours


def drop_tokens(recipe: Recipe, share: float, mask: str | None = None, full_from: float | None = None) -> Recipe:
    """The recipe with a field that draws which patches are read, up to the fraction `full_from` of training.

    Contrastive losses and captions read the kept patches. Local crops, the teacher and masked prediction read whole
    views. Boxes need the whole image and are learned from `full_from` on. Raises UserError if the recipe does not
    support kept tokens.
    """
    if share == 1:
        if mask is not None or full_from is not None:
            raise UserError("--token-mask and --full-from are for runs with --keep-tokens; give it too.")
        return recipe
    mask, end = mask or MASK, FULL_FROM if full_from is None else full_from
    if mask not in MASKS:
        raise UserError(f"--token-mask {mask!r} is unknown; it is {', '.join(MASKS)}.")
    networks, fields = recipe.architecture, list[Field]()
    if networks.encoder is not None or (networks.foreign is not None and networks.foreign.vision is not None):
        raise UserError(
            "--keep-tokens: an image tower of timm or of --vision reads whole images; leave --keep-tokens out."
        )
    if networks.image_positions:
        raise UserError("--keep-tokens: --image-positions gives each token of a whole image its own; leave one out.")
    for field in recipe.fields:
        if isinstance(field, Mixture):
            raise UserError(
                "--keep-tokens: this recipe asks for counts, boxes and words anywhere in an image; leave the flag out."
            )
        fields += captions_first(field, end) if isinstance(field, Captions) else [field]
    view, views = _compared(recipe)
    kept = KeptTokens(share, networks.patch, mask=mask, view=view, views=views, end=end)
    return replace(recipe, fields=[*fields, kept])


def captions_first(field: Captions, end: float) -> list[Field]:
    """Captions only up to the fraction `end` of training, and all tasks from then on. Raises UserError."""
    captions = tuple(task for task in field.tasks if task == "cap")
    if captions == field.tasks:
        return [field]
    if end == 1:
        raise UserError(
            "--full-from 1: boxes are learned from whole images, and no step would have them; give a smaller value."
        )
    early, late = copy(field), copy(field)
    early.tasks, early.end, late.start = captions, end, end
    return [early, late]


def _compared(recipe: Recipe) -> tuple[str, int]:
    """The batch field with the images that are compared with texts, and their number per example."""
    if any(isinstance(field, Images) for field in recipe.fields):
        return "image", 1
    for field in recipe.fields:
        if isinstance(field, Views):
            return "global", field.counts[0]
    raise UserError("--keep-tokens: this recipe has no field Images or Views to drop tokens of; leave it out.")
