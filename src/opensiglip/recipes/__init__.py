"""Recipes by name: one function per paper."""

from opensiglip.recipes.captioning import cap, cappa, captioner, locca
from opensiglip.recipes.contrastive import siglip
from opensiglip.recipes.recipe import Recipe, RecipeFunction
from opensiglip.recipes.siglip2 import siglip2

RECIPES: dict[str, RecipeFunction] = {f.__name__: f for f in (siglip, cap, cappa, captioner, locca, siglip2)}

__all__ = ["RECIPES", "Recipe", "RecipeFunction", "cap", "cappa", "captioner", "locca", "siglip", "siglip2"]
