"""Recipes by name: one function per paper. torch is imported only when a recipe is called."""

from opensiglip.recipes.captioning import cap, cappa, captioner, locca
from opensiglip.recipes.contrastive import clip, coca, lit, siglip
from opensiglip.recipes.distillation import silc, tips, tips2
from opensiglip.recipes.find import build_recipe, check_keywords, find_recipe
from opensiglip.recipes.naflex import siglip2_naflex
from opensiglip.recipes.recipe import Continuation, Recipe, RecipeFunction
from opensiglip.recipes.registry import RECIPES, TRAINED, list_recipes
from opensiglip.recipes.siglip2 import siglip2, siglip2_acid
from opensiglip.recipes.tasks import pali, tasks

__all__ = [
    "RECIPES",
    "TRAINED",
    "Continuation",
    "Recipe",
    "RecipeFunction",
    "build_recipe",
    "cap",
    "cappa",
    "captioner",
    "check_keywords",
    "clip",
    "coca",
    "find_recipe",
    "list_recipes",
    "lit",
    "locca",
    "pali",
    "siglip",
    "siglip2",
    "siglip2_acid",
    "siglip2_naflex",
    "silc",
    "tasks",
    "tips",
    "tips2",
]
