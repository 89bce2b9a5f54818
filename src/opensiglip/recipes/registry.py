"""The recipes by name."""

from opensiglip.recipes.captioning import cap, cappa, captioner, locca
from opensiglip.recipes.contrastive import align, clip, coca, lit, siglip
from opensiglip.recipes.distillation import silc, tips
from opensiglip.recipes.naflex import siglip2_naflex
from opensiglip.recipes.recipe import RecipeFunction
from opensiglip.recipes.siglip2 import siglip2
from opensiglip.recipes.tasks import pali, tasks

_ALL = (clip, lit, align, siglip, cap, cappa, captioner, locca, coca, silc, tips, siglip2, siglip2_naflex, tasks, pali)
RECIPES: dict[str, RecipeFunction] = {recipe.__name__: recipe for recipe in _ALL}


def list_recipes() -> list[str]:
    """Names that `train` takes."""
    return list(RECIPES)
