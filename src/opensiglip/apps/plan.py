"""`opensiglip plan RECIPE`: what a run will need, without running it. Flags are known before torch is."""

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from opensiglip.apps import signature
from opensiglip.apps.train import joined, keywords, numbers, read_recipes
from opensiglip.bounds import check_bounds
from opensiglip.training.planning.config import PlanConfig


@dataclass(frozen=True)
class PlanRecipe:
    """`plan` with one recipe."""

    recipe: str
    help: str
    own: tuple[inspect.Signature, str]  # the recipe's signature and docstring

    def flags(self, words: Sequence[str]) -> tuple[inspect.Signature, str]:
        """PlanConfig's and the recipe's."""
        return inspect.Signature([*signature.of_fields(PlanConfig), *keywords(self.own[0])]), joined(
            self.own[1], PlanConfig.__doc__ or ""
        )

    def call(self, flags: Mapping[str, Any]) -> None:
        """Check the values, plan, print. Raises UserError."""
        own = {field.name for field in fields(PlanConfig)}
        config = PlanConfig(**{name: value for name, value in flags.items() if name in own})
        check_bounds(PlanConfig, vars(config))
        check_bounds(signature.like(self.own[0]), numbers(flags))
        from opensiglip.apps.quiet import quiet_libraries
        from opensiglip.training.planning.request import answer

        quiet_libraries()
        said, facts = answer(self.recipe, {k: v for k, v in flags.items() if k not in own}, config)
        print(json.dumps(facts, indent=2) if config.json else said)


def plans(words: Sequence[str]) -> dict[str, PlanRecipe]:
    """`plan` with each recipe, and with FILE.py:FUNCTION where that is the first word. Raises UserError."""
    return {name: PlanRecipe(name, own[1].partition("\n")[0], own) for name, own in read_recipes(words).items()}
