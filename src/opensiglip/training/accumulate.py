"""The exact gradient of a batch that does not fit: any objectives, any engine."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from opensiglip.training.learner import Learner, Losses, Outcome
from opensiglip.types import Batch


def accumulate(
    step: Callable[..., Any],
    learner: Learner,
    parts: list[Batch],
    live: Tensor,
    backward: Callable[[Tensor], None],
    no_sync: Callable[[Any], AbstractContextManager[Any]],
) -> Outcome:
    """Leave the gradient of this rank's whole batch in `.grad`; return its losses and notes, averaged over parts.

    `step` is the learner, perhaps wrapped (DDP); weights are read only inside its calls. Terms of single examples add
    up over parts. Pairwise terms compare *all* parts: a first pass without gradients collects features, their loss
    gives the gradient at the features, a second pass pushes it through the towers (GradCache, arXiv:2101.06983).
    """
    if len(parts) == 1:
        losses, notes = step(parts[0], live)
        backward(losses["loss"])
        return Outcome({name: loss.detach() for name, loss in losses.items()}, notes)

    compared, feature_grads = _compare(step, learner, parts, live)
    outcomes: list[Outcome] = []
    for index, part in enumerate(parts):
        with no_sync(step) if index < len(parts) - 1 else nullcontext():
            losses, notes = step(part, live, len(parts), feature_grads[index])
            backward(losses["loss"])
        outcomes.append(Outcome({name: loss.detach() for name, loss in losses.items()}, notes))
    means = _mean([losses for losses, _ in outcomes]) | compared
    total = torch.as_tensor(sum(objective.weight * means[objective.name] for objective in learner.terms()))
    return Outcome(means | {"loss": total}, _mean([notes for _, notes in outcomes]))


def _mean(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([row[name] for row in rows]).mean(0) for name in rows[0] if name != "loss"}


def _compare(
    step: Callable[..., Any], learner: Learner, parts: list[Batch], live: Tensor
) -> tuple[Losses, list[list[list[Tensor]]]]:
    """Each pairwise term's loss on the whole batch, and for each part its gradients at that part's features."""
    if not learner.pairwise():
        return {}, [[] for _ in parts]
    with torch.no_grad():
        encoded = [step(part, live, features_only=True) for part in parts]
    names = [objective.name for objective in learner.terms()]
    compared: Losses = {}
    feature_grads: list[list[list[Tensor]]] = [[] for _ in parts]
    for k, objective in enumerate(learner.pairwise()):
        sizes = [len(features[k][0][0]) for features in encoded]
        rows = [torch.cat(column) for column in zip(*(features[k][0] for features in encoded), strict=True)]
        shared = [x.detach().clone().requires_grad_() for x in encoded[0][k][1]]
        differentiable = [x.requires_grad_() for x in rows if x.is_floating_point()]
        with torch.enable_grad():
            loss = objective.compare(rows, shared) / (live[names.index(objective.name)] * len(parts))
            weighted, wanted = objective.weight * loss, differentiable + shared
            grads = torch.autograd.grad(weighted, wanted, materialize_grads=True)  # no hook of DDP fires here
        split = [grad.split(sizes) for grad in grads[: len(differentiable)]]
        for index in range(len(parts)):
            of_shared = [grad / len(parts) for grad in grads[len(differentiable) :]]
            feature_grads[index].append([*(grad[index] for grad in split), *of_shared])
        compared[objective.name] = loss.detach()
    return compared, feature_grads
