"""From what `train` was told to what it will do; nothing is written yet."""

import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from accelerate.utils import set_seed

from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.checkpoints.run_folder import RunFolder
from opensiglip.data.fields.frame import Frame
from opensiglip.data.sources.python import spec_of
from opensiglip.recipes import TRAINED, Recipe, build_recipe, check_keywords, find_recipe
from opensiglip.recipes.growing import check_growth
from opensiglip.recipes.kept_tokens import drop_tokens
from opensiglip.training.config import TrainConfig
from opensiglip.training.curation.build import distilled
from opensiglip.training.pretrained_towers import check_taught, frozen_by_default, tower_keywords, with_towers
from opensiglip.training.record import resolved
from opensiglip.training.start import architecture_of, check_adapted, check_locked, keywords_of, open_start


@dataclass(frozen=True)
class Job:
    """A run as it was asked for: the recipe with its networks and heads, what it starts from, train's config."""

    config: TrainConfig
    recipe: Recipe
    record: dict[str, Any]  # what config.json will hold
    start: Pretrained | None = None


def restarted() -> bool:
    """Whether torchrun's --max-restarts has started this process anew, because a rank failed."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def resolve(name: str, keywords: Mapping[str, Any]) -> Job:
    """Check all keywords, open the weights to start from, build the recipe. Raises UserError."""
    data = keywords.get("data", ())
    specs = [spec_of(one) for one in (data if isinstance(data, list | tuple) else [data])]  # of objects, too
    config, own = TrainConfig.part({**TRAINED.get(name, {}), **keywords, "data": specs})
    if restarted() and RunFolder(config.out).config.is_file():
        config = replace(config, resume=True)
    function = find_recipe(name)
    check_keywords(function, own)
    start = None if config.init is None else open_start(config.init)
    if start is not None:
        own = keywords_of(start, function, own)
    own = tower_keywords(config, function, own)
    set_seed(config.seed)  # heads draw their weights when the recipe is built
    recipe = build_recipe(function, own)
    if start is not None:
        networks, frame = architecture_of(start, recipe.architecture), recipe.frame
        if isinstance(frame, Frame):
            frame = replace(frame, interpolation=networks.interpolation)
        recipe = replace(recipe, architecture=networks, frame=frame)
    recipe = with_towers(config, recipe)
    for term in recipe.objectives:
        term.check(recipe.architecture)
    freeze = config.freeze or frozen_by_default(recipe)
    check_taught(recipe, freeze)
    check_adapted(recipe.architecture, freeze, config.lora, config.tower_lr)
    given = not (config.init is None and config.continue_from is None and config.vision is None)
    check_locked(recipe.architecture, given, "frozen" in inspect.signature(function).parameters)
    check_growth(recipe)
    recipe = drop_tokens(recipe, config.keep_tokens, config.token_mask, config.full_from)
    recipe = distilled(config, recipe)
    if config.curate is not None and config.filter is None:
        config = replace(config, filter=recipe.filter)
    return Job(config, recipe, resolved(name, own, config), start)
