"""Find a recipe by name, check its keywords and build it."""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from opensiglip.bounds import check_bounds
from opensiglip.data.size_schedule import schedules
from opensiglip.errors import UserError
from opensiglip.recipes.growing import grown
from opensiglip.recipes.recipe import Recipe, RecipeFunction
from opensiglip.recipes.registry import RECIPES
from opensiglip.user_file import load


def find_recipe(name: str) -> RecipeFunction:
    """The function of a listed recipe, or the user's own as FILE.py:FUNCTION. Raises UserError."""
    if name in RECIPES:
        return RECIPES[name]
    file, _, function_name = name.rpartition(":")
    if file.endswith(".py"):
        function = load("recipe", file, function_name)
        if not callable(function):
            raise UserError(f"{file} has no function {function_name!r}; name the one that returns a Recipe.")
        return cast(RecipeFunction, function)
    raise UserError(f"no such recipe: {name!r}; recipes are {', '.join(RECIPES)}, or FILE.py:FUNCTION.")


def check_keywords(function: RecipeFunction, keywords: Mapping[str, Any]) -> None:
    """Raises UserError on keywords that a recipe does not have, and on numbers outside their bounds."""
    known = inspect.signature(function).parameters
    unknown = [name for name in keywords if name not in known]
    if unknown:
        raise UserError(f"recipe {function.__name__} has no {unknown[0]!r}; its keywords are {', '.join(known)}.")
    check_bounds(function, keywords)


def build_recipe(function: RecipeFunction, keywords: Mapping[str, Any]) -> Recipe:
    """The recipe that the function returns for these keywords, without what never begins. Raises UserError."""
    found = schedules(keywords)
    check_keywords(function, {**keywords, **{name: one.sizes for name, one in found.items()}})
    recipe = function(**{**keywords, **{name: one.last for name, one in found.items()}})
    if not isinstance(recipe, Recipe):
        raise UserError(f"recipe {function.__name__} returns {type(recipe).__name__}; let it return a Recipe.")
    fields = [field for field in recipe.fields if field.start < 1]
    terms = [term for term in recipe.objectives if term.start < 1]
    return grown(replace(recipe, fields=fields, objectives=terms), found.get("resolution"), found.get("length"))
