"""`opensiglip plan RECIPE`: what a run will need, without running it. Flags are known before torch is."""

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, Literal, get_type_hints

import tyro

from opensiglip.apps import signature
from opensiglip.apps.train import UTILISATION, joined, keywords, read_recipes
from opensiglip.bounds import Bounds, check_bounds


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """What a plan is made for.

    Args:
        batch_size: images of the global batch, over all ranks and parts.
        gpus: ranks, one on each.
        gpu: h100 (80 GB), h200, a100 (80 GB), l40s, t4, or cpu: this machine, its rate measured.
        examples: image visits of the whole run, such as 3e9; for days and GPU-hours.
        accumulate: parts that a rank's share of the batch is encoded in.
        checkpointing: keep no activations inside layers.
        shard: weights, gradients and moments cut among the ranks.
        precision: auto, fp32, bf16 or fp16.
        vocabulary: entries of the tokenizer.
        data: what texts and regions are drawn from, to know how long they are: scenes, or a folder.
        utilisation: share of the machine's peak rate that the products take.
        json: print JSON instead of text.
    """

    batch_size: Annotated[int, Bounds(at_least=1)] = 128
    gpus: Annotated[int, Bounds(at_least=1)] = 1
    gpu: Literal["h100", "h200", "a100", "l40s", "t4", "cpu"] = "h100"
    examples: Annotated[float | None, Bounds(more_than=0)] = None
    accumulate: Annotated[int, Bounds(at_least=1)] = 1
    checkpointing: bool = False
    shard: bool = False
    precision: str = "auto"
    vocabulary: Annotated[int, Bounds(at_least=258)] = 32_000
    data: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ("scenes",)
    utilisation: Annotated[float, Bounds(more_than=0, at_most=1)] = UTILISATION
    json: bool = False


@dataclass(frozen=True)
class PlanRecipe:
    """`plan` with one recipe."""

    recipe: str
    help: str
    own: tuple[inspect.Signature, str]  # the recipe's signature and docstring

    def flags(self, words: Sequence[str]) -> tuple[inspect.Signature, str]:
        """PlanConfig's and the recipe's."""
        types = get_type_hints(PlanConfig, include_extras=True)
        shared = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=types[field.name],
                default=inspect.Parameter.empty if field.default is MISSING else field.default,
            )
            for field in fields(PlanConfig)
        ]
        return inspect.Signature([*shared, *keywords(self.own[0])]), joined(self.own[1], PlanConfig.__doc__ or "")

    def call(self, flags: Mapping[str, Any]) -> None:
        """Check the values, plan, print. Raises UserError."""
        own = {field.name for field in fields(PlanConfig)}
        config = PlanConfig(**{name: value for name, value in flags.items() if name in own})
        check_bounds(PlanConfig, vars(config))
        check_bounds(signature.like(self.own[0]), flags)
        from opensiglip.apps.quiet import quiet_libraries
        from opensiglip.training.planning.request import answer

        quiet_libraries()
        said, facts = answer(self.recipe, {k: v for k, v in flags.items() if k not in own}, config)
        print(json.dumps(facts, indent=2) if config.json else said)


def plans(words: Sequence[str]) -> dict[str, PlanRecipe]:
    """`plan` with each recipe, and with FILE.py:FUNCTION where that is the first word. Raises UserError."""
    return {name: PlanRecipe(name, own[1].partition("\n")[0], own) for name, own in read_recipes(words).items()}
