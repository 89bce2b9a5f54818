"""A job's networks and objectives on torch's meta device: every shape, no memory."""

import copy
from dataclasses import replace

import torch

from opensiglip.data.text import TextPipeline
from opensiglip.models.model import Model
from opensiglip.recipes import Recipe
from opensiglip.training.learner import Learner
from opensiglip.training.start import set_trainable


def meta_learner(recipe: Recipe, pipeline: TextPipeline, freeze: str | None = None, lora: int | None = None) -> Learner:
    """What training would build, on the meta device; a timm encoder is read as it is. Raises UserError."""
    networks = replace(recipe.architecture, pad_id=pipeline.policy.pad_id)
    place = torch.device("meta" if networks.encoder is None else "cpu")
    with place:
        model = Model.new(networks, len(pipeline))
        set_trainable(model, freeze, lora)
    objectives = copy.deepcopy(recipe.objectives)
    with torch.device("meta"):
        return Learner.of(model, replace(recipe, objectives=objectives), pipeline)
