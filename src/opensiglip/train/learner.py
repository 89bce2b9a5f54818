"""The learner: the model and its objectives as one module, from a batch to named losses."""

import torch
from torch import Tensor, nn

from opensiglip.distributed import sum_over_ranks, world
from opensiglip.models.model import Model
from opensiglip.objectives.base import Encoded, Objective, Pairwise, PerExample
from opensiglip.types import Batch

Losses = dict[str, Tensor]


class Learner(nn.Module):
    """Everything with weights. Serving needs the model; only training needs the rest."""

    def __init__(self, model: Model, objectives: list[Objective]) -> None:
        super().__init__()
        self.model = model
        self.objectives = nn.ModuleDict({objective.name: objective for objective in objectives})

    def terms(self) -> list[Objective]:
        """The objectives, in the recipe's order."""
        return [o for o in self.objectives.values() if isinstance(o, Objective)]

    def pairwise(self) -> list[Pairwise]:
        """Those that compare examples with one another."""
        return [o for o in self.terms() if isinstance(o, Pairwise)]

    def forward(
        self, batch: Batch, live: Tensor, parts: int = 1, pulls: list[list[Tensor]] | None = None, look: bool = False
    ) -> Losses | list[tuple[list[Tensor], list[Tensor]]]:
        """Named losses and their weighted sum under "loss".

        live [number of terms]: the denominators, from `denominators`. With `parts` > 1 this is one of several parts of
        a rank's batch: pairwise terms then contribute only the gradient in `pulls`, which `accumulate` made from the
        whole batch. With `look` only the pairwise features are returned.
        """
        encoded = Encoded(self.model, batch)
        if look:
            return [objective.features(encoded) for objective in self.pairwise()]
        losses: Losses = {}
        total = torch.zeros((), device=live.device)
        waiting = iter(pulls or [])
        for index, objective in enumerate(self.terms()):
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


def denominators(learner: Learner, parts: list[Batch]) -> Tensor:
    """Mean number of live units per rank and part, for each term: one small all-reduce, from data alone.

    Dividing each part's sum by this mean, then averaging over ranks and parts as DDP does, is the global sum over the
    global count, however unevenly the units lie. At least a tiny positive number: a term with nothing to learn is 0.
    """
    counts = [torch.stack([objective.live(part).double() for part in parts]).sum() for objective in learner.terms()]
    total = sum_over_ranks(torch.stack(counts))
    return (total / (world()[1] * len(parts))).clamp(min=1e-9)
