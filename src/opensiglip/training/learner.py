"""The learner: the model, its objectives and its EMA teacher as one module, from a batch to named losses."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from opensiglip.data.text import TextPipeline
from opensiglip.distributed import sum_over_ranks, world
from opensiglip.float64 import widen
from opensiglip.models.averaged_head import AveragedHead
from opensiglip.models.ema import Ema
from opensiglip.models.model import Model
from opensiglip.objectives.base import Encoded, Notes, Objective, Pairwise, PerExample
from opensiglip.recipes.recipe import Recipe
from opensiglip.types import Batch

Losses = dict[str, Tensor]
PairwiseFeatures = list[tuple[list[Tensor], list[Tensor]]]  # what `Pairwise.features` gave, for each such objective


class Outcome(NamedTuple):
    """What a step makes of a batch: losses to descend, and notes for what is learned otherwise."""

    losses: Losses
    notes: Notes


class Learner(nn.Module):
    """Everything with weights. Serving needs the model; only training needs the rest.

    Objectives begin at their `start`: until `activate` reaches it they are frozen and cost nothing. The teacher is the
    EMA of the image tower; it begins as a copy of the student when the first objective that needs it does. Where only
    the heads have averages (`Momentum.heads_alone`), it is the student's tower itself.
    """

    def __init__(self, model: Model, objectives: Sequence[Objective]) -> None:
        """`objectives` are built. Raises ValueError where two of them want different momenta of the one teacher."""
        super().__init__()
        self.model = model
        self.objectives = nn.ModuleDict({objective.name: objective for objective in objectives})
        momenta = {objective.teacher for objective in objectives if objective.teacher is not None}
        if len(momenta) > 1:
            raise ValueError(f"objectives share one teacher, so they must agree on its momentum: {momenta}")
        self.momentum = next(iter(momenta), None)
        self.teacher = None if self.momentum is None or self.momentum.heads_alone else Ema(model.vision)
        self.active: set[str] = {objective.name for objective in objectives}
        self.head_ema = 0.0  # what each step keeps of the heads' averages, where they have some

    @classmethod
    def new(cls, recipe: Recipe, pipeline: TextPipeline) -> "Learner":
        """A recipe's networks and objectives, freshly initialised."""
        networks = replace(recipe.architecture, pad_id=pipeline.policy.pad_id)
        return cls.of(Model.new(networks, len(pipeline)), recipe, pipeline)

    @classmethod
    def of(cls, model: Model, recipe: Recipe, pipeline: TextPipeline) -> "Learner":
        """A model at hand with a recipe's objectives."""
        for objective in recipe.objectives:
            objective.build(pipeline, model.architecture)
        return cls(model, recipe.objectives)

    def terms(self) -> list[Objective]:
        """The objectives that have begun, in the recipe's order."""
        return [o for o in self.objectives.values() if isinstance(o, Objective) and o.name in self.active]

    def pairwise(self) -> list[Pairwise]:
        """Those that compare examples with one another."""
        return [o for o in self.terms() if isinstance(o, Pairwise)]

    def activate(self, progress: float, freeze: bool = True) -> set[str]:
        """Compute those objectives whose start the share `progress` of training has reached; return their names.

        The others are frozen, so that ranks wait for no gradient of theirs: call it after the optimizer was made, which
        is to know all parameters from the beginning.
        """
        self.active = {o.name for o in self.objectives.values() if isinstance(o, Objective) and o.start <= progress}
        if not freeze:
            return self.active
        averages = {id(p) for module in self.modules() if isinstance(module, Ema) for p in module.parameters()}
        for name, objective in self.objectives.items():
            for parameter in objective.parameters():
                parameter.requires_grad_(name in self.active and id(parameter) not in averages)
        return self.active

    @torch.no_grad()
    def start_teachers(self, names: set[str]) -> None:
        """Where the objectives `names` begin: the teacher (with the first that needs it) and their heads' EMAs copy."""
        taught = [o for o in self.terms() if o.teacher is not None]
        if taught and all(o.name in names for o in taught) and self.teacher is not None:
            self.teacher.update(0.0)
        for objective in taught:
            if objective.name in names:
                update_averages(objective, 0.0)

    @torch.no_grad()
    def after_step(self, notes: Notes, progress: float) -> None:
        """Weights return to their range; averages move; objectives learn from `notes`. Not for skipped steps.

        `notes` are averaged over parts and ranks.
        """
        terms = self.terms()
        for objective in terms:
            objective.constrain(self.model)
        taught = [o for o in terms if o.teacher is not None]
        if taught and self.momentum is not None:
            start = min(o.start for o in taught)
            momentum = self.momentum.at((progress - start) / max(1 - start, 1e-9))
            if self.teacher is not None:
                self.teacher.update(momentum)
            for objective in taught:
                update_averages(objective, momentum)
        for module in self.model.modules():
            if isinstance(module, AveragedHead):
                module.average.update(self.head_ema)
        for objective in terms:
            objective.after_step(notes)

    def train(self, mode: bool = True) -> "Learner":
        """As always, but towers of which nothing is trained stay in eval mode: no dropout, fixed BatchNorm statistics.

        Otherwise a frozen tower's features would hang on the other images of the batch.
        """
        super().train(mode)
        for tower in (self.model.vision, self.model.text):
            for part in () if tower is None else (tower, getattr(tower, "tower", None)):
                if part is not None and not any(parameter.requires_grad for parameter in part.parameters()):
                    part.eval()
        return self

    def forward(
        self,
        batch: Batch,
        live: Tensor,
        parts: int = 1,
        feature_grads: list[list[Tensor]] | None = None,
        features_only: bool = False,
    ) -> Outcome | PairwiseFeatures:
        """Named losses and their weighted sum under "loss", and the objectives' notes.

        live [number of terms]: the denominators, from `denominators`. With `parts` > 1 this is one of several parts of
        a rank's batch: pairwise terms then contribute only `feature_grads`, their gradients at the features, which
        `accumulate` made from the whole batch. With `features_only`, the pairwise features are returned.
        """
        encoded = Encoded(self.model, batch, self.teacher)
        if features_only:
            return [objective.features(encoded) for objective in self.pairwise()]
        losses = weighted_losses(self.terms(), encoded, live, parts, feature_grads)
        return Outcome(losses, encoded.notes)


def weighted_losses(
    terms: Sequence[Objective],
    encoded: Encoded,
    live: Tensor,
    parts: int = 1,
    feature_grads: list[list[Tensor]] | None = None,
) -> Losses:
    """Each term's sum over its denominator in `live`, by name, and their weighted sum under "loss"."""
    losses: Losses = {}
    total = torch.zeros((), device=live.device)
    grads = iter(feature_grads or [])
    for index, objective in enumerate(terms):
        if isinstance(objective, Pairwise) and feature_grads is not None:
            rows, shared = objective.features(encoded)
            differentiable = [x for x in rows if x.is_floating_point()] + shared
            total = total + sum((g * x).sum() for g, x in zip(next(grads), differentiable, strict=True))
            continue
        if isinstance(objective, Pairwise):
            term = objective.compare(*objective.features(encoded))
        else:
            assert isinstance(objective, PerExample)
            term = objective(encoded)
        losses[objective.name] = term / live[index]
        total = total + objective.weight * losses[objective.name] / parts
    return losses | {"loss": total}


class HasTerms(Protocol):
    """A sum of objectives."""

    def terms(self) -> list[Objective]: ...


def denominators(learner: HasTerms, parts: list[Batch]) -> Tensor:
    """Mean number of live units per rank and part, for each term: one small all-reduce, from data alone.

    Dividing each part's sum by this mean, then averaging over ranks and parts as DDP does, is the global sum over the
    global count, however unevenly the units lie. At least a tiny positive number: a term with nothing to learn is 0.
    """
    counts = [torch.stack([widen(objective.live(part)) for part in parts]).sum() for objective in learner.terms()]
    total = sum_over_ranks(torch.stack(counts))
    return (total / (world()[1] * len(parts))).clamp(min=1e-9)


def update_averages(objective: Objective, momentum: float) -> None:
    """Move the EMAs that an objective has of its own."""
    for module in objective.modules():
        if isinstance(module, Ema):
            module.update(momentum)
