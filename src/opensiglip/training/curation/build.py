"""From what `train` was told to the run's curator, its references, and the term by which one of them teaches."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch

from opensiglip.data.example import Source
from opensiglip.data.fields.curation import SCORER, TEACHER, Origins
from opensiglip.data.fields.field import Field, Images, Texts
from opensiglip.data.fields.frame import Frame, Geometry
from opensiglip.errors import UserError
from opensiglip.objectives.contrastive import Sigmoid
from opensiglip.objectives.distil import Distil
from opensiglip.recipes import Recipe
from opensiglip.recipes.growing import reads_one_size
from opensiglip.training.config import TrainConfig
from opensiglip.training.curation.curator import Curator
from opensiglip.training.curation.reference import Reference
from opensiglip.training.curation.selection import SIGNS
from opensiglip.training.curation.tally import Tally


def curator(
    config: TrainConfig,
    recipe: Recipe,
    sources: Sequence[Source],
    autocast: Callable[[], AbstractContextManager[Any]],
) -> Curator | None:
    """The run's, or None where nothing is curated. Raises UserError on a recipe that can't be.

    sources: as they are trained on. autocast: of the learner's scores.
    """
    if config.curate is None:
        return None
    check_recipe(config.curate, recipe)
    if config.score_resolution is not None:
        check_resolution(config.score_resolution, recipe)
    origins = Origins([source.name for source in sources], [code for source in sources for code in source.languages])
    return Curator(
        method=config.curate,
        keep=config.batch_size,
        chunks=config.chunks,
        seed=config.seed,
        fields=[origins],
        names=origins.names,
        autocast=autocast,
        tally=Tally(sum(len(source) for source in sources)),
        resolution=config.score_resolution,
        interpolation=recipe.frame.interpolation,
    )


def references(
    config: TrainConfig, frame: Geometry, device: torch.device, autocast: Callable[[], AbstractContextManager[Any]]
) -> list[Reference]:
    """The models of --reference and --teacher, each with the rows that it gives. Raises UserError.

    The reference scores where the method asks for its loss, and teaches where there is no teacher beside it.
    """
    scores = config.curate is not None and SIGNS[config.curate][1] != 0
    teaches = config.distil is not None and config.teacher is None
    found = []
    if config.reference is not None:
        writes = [*([SCORER] if scores else []), *([TEACHER] if teaches else [])]
        found.append(Reference.open(config.reference, frame, device, autocast, writes))
    if config.teacher is not None:
        found.append(Reference.open(config.teacher, frame, device, autocast, [TEACHER], "teacher"))
    return found


def fields_beside(curating: Curator | None, beside: Sequence[Reference]) -> list[Field]:
    """What selection and references read of a visit, beside the recipe's fields."""
    return [*([] if curating is None else curating.fields), *(field for one in beside for field in one.fields)]


CURATED = "siglip2_acid, siglip or align"  # recipes


def check_recipe(method: str, recipe: Recipe) -> None:
    """Raises UserError where a recipe's batch can't be chosen from, or has no sigmoid to score by."""
    if not any(isinstance(objective, Sigmoid) for objective in recipe.objectives):
        raise UserError(f"--curate {method} scores pairs by the sigmoid's loss; take {CURATED}.")
    packed = [type(one).__name__ for one in recipe.fields if not one.by_row]
    if packed:
        raise UserError(
            f"--curate {method} chooses rows of a batch, and the recipe's {packed[0]} packs examples otherwise; take "
            f"{CURATED}."
        )
    if not any(isinstance(field, Images) for field in recipe.fields):
        raise UserError(f"--curate {method} scores images seen whole, and the recipe has crops alone; take {CURATED}.")


def check_resolution(pixels: int, recipe: Recipe) -> None:
    """Raises UserError where the image tower can't score images of so many pixels a side."""
    frame, patch = recipe.frame, recipe.architecture.patch
    if not isinstance(frame, Frame) or reads_one_size(recipe.architecture):
        raise UserError(
            "--score-resolution: a NaFlex recipe and an image tower of timm or of --vision score images as they train "
            "on them; leave it out."
        )
    if pixels % patch or not patch <= pixels <= frame.resolution:
        near = min(max(1, pixels // patch) * patch, frame.resolution)
        raise UserError(
            f"--score-resolution {pixels} is not a multiple of the patch size {patch} up to --resolution "
            f"{frame.resolution}; try {near}."
        )


def distilled(config: TrainConfig, recipe: Recipe) -> Recipe:
    """The recipe with the term of --distil. Raises UserError where it does not compare one image with one text."""
    if config.distil is None:
        return recipe
    pairs = any(isinstance(field, Images) for field in recipe.fields) and any(
        isinstance(field, Texts) and field.captions == 1 for field in recipe.fields
    )
    if not pairs:
        raise UserError(
            "--distil compares each image, seen whole, with one text; take siglip, siglip2_acid, siglip2 or clip."
        )
    if config.distil == "sigmoid" and not recipe.architecture.logit_bias:
        raise UserError("--distil sigmoid needs the bias of a recipe with a sigmoid; give --distil softmax.")
    term = Distil(config.distil, weight=config.distil_weight)
    return replace(recipe, objectives=[*recipe.objectives, term])
