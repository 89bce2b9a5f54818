"""Recipes by name: one function per paper."""

from opensiglip.recipes.captioning import cap, cappa, captioner, locca
from opensiglip.recipes.contrastive import siglip
from opensiglip.recipes.distillation import silc, tips
from opensiglip.recipes.naflex import siglip2_naflex
from opensiglip.recipes.recipe import Recipe, RecipeFunction
from opensiglip.recipes.siglip2 import siglip2

_ALL = (siglip, cap, cappa, captioner, locca, silc, tips, siglip2, siglip2_naflex)
RECIPES: dict[str, RecipeFunction] = {recipe.__name__: recipe for recipe in _ALL}

__all__ = [
    "RECIPES",
    "Recipe",
    "RecipeFunction",
    "cap",
    "cappa",
    "captioner",
    "locca",
    "siglip",
    "siglip2",
    "siglip2_naflex",
    "silc",
    "tips",
]
