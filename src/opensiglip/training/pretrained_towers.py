"""`--vision` and `--text`: pretrained towers of other makes in the place of a recipe's own."""

import inspect
from dataclasses import replace
from typing import Any

from opensiglip.checkpoints.formats import towers
from opensiglip.checkpoints.source import locate
from opensiglip.data.fields.frame import Frame
from opensiglip.errors import UserError
from opensiglip.models.sizes import with_patch
from opensiglip.recipes import Recipe, RecipeFunction
from opensiglip.training.config import TrainConfig


def tower_keywords(config: TrainConfig, function: RecipeFunction, keywords: dict[str, Any]) -> dict[str, Any]:
    """The recipe's keywords, at the resolution that the tower of `--vision` is fed. Raises UserError."""
    if config.vision is None:
        return keywords
    if "resolution" not in inspect.signature(function).parameters:
        raise UserError(f"--vision {config.vision}: the recipe {function.__name__} has no resolution to set.")
    place = locate(config.vision)
    _, patch = towers.image_shape(place, config.vision)
    side = keywords.get("resolution") or towers.image_side(place, config.vision)
    size = keywords.get("size") or inspect.signature(function).parameters["size"].default
    return keywords | {"resolution": side, "size": with_patch(size, patch)}  # with patches that divide it


def with_towers(config: TrainConfig, recipe: Recipe) -> Recipe:
    """The recipe with the towers of `--vision` and `--text` in the place of its own. Raises UserError."""
    networks = recipe.architecture
    if config.vision is not None:
        networks = towers.with_vision(networks, locate(config.vision), config.vision)
    if config.text is not None:
        networks = towers.with_text(networks, locate(config.text), config.text)
    if networks is recipe.architecture:
        return recipe
    if networks.text is not None and any(term.teacher for term in recipe.objectives):
        raise UserError(
            "--vision and --text: a recipe with an EMA teacher takes towers of ours; give --distill-start 1."
        )
    frame = recipe.frame
    if isinstance(frame, Frame):
        frame = replace(frame, interpolation=networks.interpolation)
    return replace(recipe, architecture=networks, frame=frame)


def frozen_by_default(recipe: Recipe) -> str | None:
    """What `--freeze` is where it is not given: of a recipe that locks them, the towers of other makes."""
    pair = recipe.architecture.foreign
    if pair is None or not recipe.freeze_towers:
        return None
    return "both" if pair.vision and pair.text else "vision" if pair.vision else "text"
