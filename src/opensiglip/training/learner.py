"""The learner: the model, its objectives and its teacher as one module, from a batch to named losses."""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from opensiglip.distributed import sum_over_ranks, world
from opensiglip.models.ema import Slow
from opensiglip.models.model import Model
from opensiglip.objectives.base import Encoded, Notes, Objective, Pairwise, PerExample
from opensiglip.types import Batch

Losses = dict[str, Tensor]
Looked = list[tuple[list[Tensor], list[Tensor]]]


class Outcome(NamedTuple):
    """What a step makes of a batch: losses to descend and notes to learn from otherwise."""

    losses: Losses
    notes: Notes


class Learner(nn.Module):
    """Everything with weights. Serving needs the model; only training needs the rest.

    Objectives begin at their `start`: until `enter` reaches it they are frozen and cost nothing. The teacher begins as
    a copy of the student at the moment its first lesson does, and follows it with a momentum that is `momentum`, or
    goes from there to `momentum_end` along a cosine until the end of training (DINO's schedule).
    """

    def __init__(
        self, model: Model, objectives: list[Objective], momentum: float = 0.996, momentum_end: float | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.objectives = nn.ModuleDict({objective.name: objective for objective in objectives})
        self.teacher = Slow(model.vision) if any(objective.taught for objective in objectives) else None
        self.momentum, self.momentum_end = momentum, momentum if momentum_end is None else momentum_end
        self.begun: set[str] = {objective.name for objective in objectives}

    def terms(self) -> list[Objective]:
        """The objectives that have begun, in the recipe's order."""
        return [o for o in self.objectives.values() if isinstance(o, Objective) and o.name in self.begun]

    def pairwise(self) -> list[Pairwise]:
        """Those that compare examples with one another."""
        return [o for o in self.terms() if isinstance(o, Pairwise)]

    def enter(self, progress: float, freeze: bool = True) -> set[str]:
        """Compute those objectives whose start the share `progress` of training has reached; return their names.

        The others are frozen, so that ranks wait for no gradient of theirs: call it after the optimizer was made, which
        is to know all parameters from the beginning.
        """
        self.begun = {o.name for o in self.objectives.values() if isinstance(o, Objective) and o.start <= progress}
        if not freeze:
            return self.begun
        slow = {id(p) for module in self.modules() if isinstance(module, Slow) for p in module.parameters()}
        for name, objective in self.objectives.items():
            for parameter in objective.parameters():
                parameter.requires_grad_(name in self.begun and id(parameter) not in slow)
        return self.begun

    @torch.no_grad()
    def begin(self, names: set[str]) -> None:
        """Where a lesson begins, the teacher (of the first) and the head's slow copy begin as the student."""
        taught = [o for o in self.terms() if o.taught]
        if taught and all(o.name in names for o in taught) and self.teacher is not None:
            self.teacher.follow(0.0)
        for objective in taught:
            if objective.name in names:
                _follow(objective, 0.0)

    @torch.no_grad()
    def after_step(self, notes: Notes, progress: float) -> None:
        """Weights return to their range; teacher, slow heads and centres move. Not for skipped steps.

        `notes` are averaged over parts and ranks.
        """
        for objective in self.terms():
            objective.constrain(self.model)
        taught = [o for o in self.terms() if o.taught]
        if not taught:
            return
        start = min(o.start for o in taught)
        share = (progress - start) / max(1 - start, 1e-9)
        momentum = self.momentum_end - (self.momentum_end - self.momentum) * (1 + math.cos(math.pi * share)) / 2
        assert self.teacher is not None
        self.teacher.follow(momentum)
        for objective in taught:
            _follow(objective, momentum)
            objective.learn(notes)

    def forward(
        self, batch: Batch, live: Tensor, parts: int = 1, pulls: list[list[Tensor]] | None = None, look: bool = False
    ) -> Outcome | Looked:
        """Named losses and their weighted sum under "loss", and the objectives' notes.

        live [number of terms]: the denominators, from `denominators`. With `parts` > 1 this is one of several parts of
        a rank's batch: pairwise terms then contribute only the gradient in `pulls`, which `accumulate` made from the
        whole batch. With `look` only the pairwise features are returned.
        """
        encoded = Encoded(self.model, batch, self.teacher)
        if look:
            return [objective.features(encoded) for objective in self.pairwise()]
        losses = weigh(self.terms(), encoded, live, parts, pulls)
        return Outcome(losses, encoded.notes)


def weigh(
    terms: Sequence[Objective],
    encoded: Encoded,
    live: Tensor,
    parts: int = 1,
    pulls: list[list[Tensor]] | None = None,
) -> Losses:
    """Each term's sum over its denominator in `live`, by name, and their weighted sum under "loss"."""
    losses: Losses = {}
    total = torch.zeros((), device=live.device)
    waiting = iter(pulls or [])
    for index, objective in enumerate(terms):
        if isinstance(objective, Pairwise) and pulls is not None:
            rows, shared = objective.features(encoded)
            pulled = [x for x in rows if x.is_floating_point()] + shared
            total = total + sum((g * f).sum() for g, f in zip(next(waiting), pulled, strict=True))
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
    counts = [torch.stack([objective.live(part).double() for part in parts]).sum() for objective in learner.terms()]
    total = sum_over_ranks(torch.stack(counts))
    return (total / (world()[1] * len(parts))).clamp(min=1e-9)


def _follow(objective: Objective, momentum: float) -> None:
    for module in objective.modules():
        if isinstance(module, Slow):
            module.follow(momentum)
