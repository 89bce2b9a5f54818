"""From what `train` was told to the run's curator."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch

from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.data.example import Source
from opensiglip.data.fields.curation import Origins, ReferenceImages, ReferenceTexts
from opensiglip.data.fields.field import Field
from opensiglip.data.fields.frame import Frame, Geometry
from opensiglip.errors import UserError
from opensiglip.models.model import Model
from opensiglip.objectives.contrastive import Sigmoid
from opensiglip.recipes import Recipe
from opensiglip.training.config import TrainConfig
from opensiglip.training.curation.curator import Curator


def curator(
    config: TrainConfig,
    recipe: Recipe,
    sources: Sequence[Source],
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> Curator | None:
    """The run's, or None where nothing is curated. Raises UserError on a recipe or a reference that can't be."""
    if config.curate is None:
        return None
    check_recipe(config.curate, recipe)
    origins = Origins([source.name for source in sources], [code for source in sources for code in source.languages])
    fields: list[Field] = [origins]
    model = None
    if config.reference is not None:
        reference = open_reference(config.reference)
        assert reference.pipeline is not None
        fields.append(ReferenceTexts(reference.pipeline))
        if not same_view(recipe.frame, reference.frame):
            fields.append(ReferenceImages(reference.frame))
        model = reference.model.to(device).requires_grad_(False)
    return Curator(
        method=config.curate,
        keep=config.batch_size,
        chunks=config.chunks,
        seed=config.seed,
        fields=fields,
        names=origins.names,
        reference=model,
        autocast=autocast,
    )


def check_recipe(method: str, recipe: Recipe) -> None:
    """Raises UserError where a recipe's batch can't be chosen from, or has no sigmoid to score by."""
    if not any(isinstance(objective, Sigmoid) for objective in recipe.objectives):
        raise UserError(f"--curate {method} scores pairs by the sigmoid's loss; take siglip2_acid, siglip or silc.")
    packed = [type(one).__name__ for one in recipe.fields if not one.by_row]
    if packed:
        raise UserError(
            f"--curate {method} chooses rows of a batch, and the recipe's {packed[0]} packs examples otherwise; take "
            "siglip2_acid, siglip, silc or tips."
        )


def open_reference(name: str) -> Pretrained:
    """The model that scores beside the learner. Raises UserError where it does not compare by a sigmoid."""
    reference = Pretrained.open(name)
    if not isinstance(reference.model, Model) or reference.model.text is None:
        raise UserError(f"--reference {name} is {reference.format}; give a SigLIP, with image and text tower.")
    if not reference.model.architecture.logit_bias:
        raise UserError(
            f"--reference {name} was trained by a softmax, whose loss of one pair says nothing; give a SigLIP."
        )
    if reference.pipeline is None:
        raise UserError(f"--reference {name} comes without its tokenizer; fetch or export it again, whole.")
    return reference


def same_view(frame: Geometry, other: Geometry) -> bool:
    """Do two models see an image at the same size, by the same resizing?"""
    return isinstance(frame, Frame) and isinstance(other, Frame) and replace(frame, crop_area=other.crop_area) == other
