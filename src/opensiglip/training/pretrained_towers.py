"""`--vision` and `--text`: pretrained towers of other makes in the place of a recipe's own."""

import inspect
from dataclasses import replace
from typing import Any

import torch

from opensiglip.checkpoints.formats import towers
from opensiglip.checkpoints.source import locate
from opensiglip.data.fields.frame import Frame
from opensiglip.data.fields.views import local_side
from opensiglip.errors import UserError, first_line
from opensiglip.models.pretrained_towers import PretrainedVision
from opensiglip.models.sizes import Architecture, with_patch
from opensiglip.models.tower_host import load_tower
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
    if networks.coca is not None and (config.vision is not None or config.text is not None):
        raise UserError(
            "--vision and --text: CoCa pools its image tower's tokens twice, and its text tower is half a decoder; "
            "leave them out, or take clip, siglip or siglip2."
        )
    if networks.naflex and config.vision is not None:
        raise UserError(
            f"--vision {config.vision} reads square images, and the recipe keeps their aspect ratio; leave it out, or "
            "take siglip2."
        )
    if config.vision is not None:
        networks = towers.with_vision(networks, locate(config.vision), config.vision)
    if config.text is not None:
        networks = towers.with_text(networks, locate(config.text), config.text)
    if networks is recipe.architecture:
        return recipe
    if config.vision is not None and any(term.teacher for term in recipe.objectives):
        check_views(networks, config.vision)
    frame = recipe.frame
    if isinstance(frame, Frame):
        frame = replace(frame, interpolation=networks.interpolation)
    return replace(recipe, architecture=networks, frame=frame)


def check_views(networks: Architecture, name: str) -> None:
    """Raises UserError where an image tower can't read what a teacher's terms show it: smaller and masked images."""
    pair, side = networks.foreign, local_side(networks.resolution, networks.patch)
    assert pair is not None and pair.vision is not None
    patches = (side // networks.patch) ** 2
    with torch.device("meta"):
        vision = PretrainedVision(load_tower(pair.vision, "--vision"), mean=pair.mean, std=pair.std)
        try:
            masked = torch.zeros(1, 1, dtype=torch.int64), torch.empty(vision.width)
            count = vision(torch.empty(1, 3, side, side), *masked).tokens.shape[1]
            why = f"{patches} patches make {count} tokens" if count != patches else ""
        except (RuntimeError, TypeError, ValueError) as error:
            why = first_line(error)
    if why:
        raise UserError(
            f"--vision {name} can't read masked images of {side} pixels, as self-distillation needs ({why}); give a "
            "DINOv2, a DINOv3, a ViT or the like."
        )


def check_taught(recipe: Recipe, freeze: str | None) -> None:
    """Raises UserError where an EMA teacher would teach an image tower that is frozen."""
    taught = [term.name for term in recipe.objectives if term.teacher]
    if taught and freeze in ("vision", "both"):
        raise UserError(
            f"--freeze {freeze}: {' and '.join(taught)} would teach the image tower, which it freezes; give --freeze "
            "text or none, or take a recipe without a teacher: siglip, or siglip2 with --distill-start 1."
        )


def frozen_by_default(recipe: Recipe) -> str | None:
    """What `--freeze` is where it is not given: of a recipe that locks them, the towers of other makes."""
    pair = recipe.architecture.foreign
    if pair is None or not recipe.freeze_towers:
        return None
    return "both" if pair.vision and pair.text else "vision" if pair.vision else "text"
