"""The recipes by name."""

from typing import Any

from opensiglip.recipes.captioning import cap, cappa, captioner, locca
from opensiglip.recipes.contrastive import align, clip, coca, lit, siglip
from opensiglip.recipes.distillation import silc, tips, tips2
from opensiglip.recipes.naflex import siglip2_naflex
from opensiglip.recipes.recipe import RecipeFunction
from opensiglip.recipes.siglip2 import siglip2, siglip2_acid
from opensiglip.recipes.tasks import pali, tasks

_ALL = (
    clip,
    lit,
    align,
    siglip,
    cap,
    cappa,
    captioner,
    locca,
    coca,
    silc,
    tips,
    tips2,
    siglip2,
    siglip2_naflex,
    siglip2_acid,
    tasks,
    pali,
)
RECIPES: dict[str, RecipeFunction] = {recipe.__name__: recipe for recipe in _ALL}

# Flags of `train` with another default for a recipe, according to its paper.
TRAINED: dict[str, dict[str, Any]] = {
    "siglip2_acid": {"lr": 1e-5, "weight_decay": 0.0, "curate": "learnability"},  # SigLIP 2, Sec. 2.5
}


def list_recipes() -> list[str]:
    """Names of the recipes that come with OpenSigLIP."""
    return list(RECIPES)
