"""Frozen features: what a nearest neighbour, a least-squares fit and a linear layer read off them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from opensiglip.evaluation.benchmark import Context, Findings, Impossible
from opensiglip.evaluation.benchmarks.zero_shot import accuracies
from opensiglip.evaluation.encoded import Judged
from opensiglip.evaluation.labels import key, label
from opensiglip.evaluation.metrics.linear import fit_linear
from opensiglip.evaluation.metrics.scores import measured
from opensiglip.inference.subject import Subject
from opensiglip.types import Features

NEIGHBOURS, SHARPNESS = 20, 0.07  # DINO's
SHOTS, SEEDS = (1, 5, 10, 25), 3
L2 = 2.0**10
CONSTANT = 100.0  # the feature that carries the bias: large, so that it is hardly regularised


def image_probes(subject: Subject, judged: Judged, context: Context) -> Findings:
    """Accuracy of three readings of the image's pooled feature (the mean of its tokens where it has no pooling).

    k-NN: 20 neighbours by cosine, weighted by exp(cosine / 0.07).    (DINO eval_knn.py)
    Few-shot: least squares in closed form, 3 seeds.    (big_vision evaluators/fewshot_lsr.py:38-111)
    Linear: logistic regression, its L2 chosen on a fifth of the training examples (ours).
    """
    trained = context.trained(subject)
    ours, theirs = _labelled(trained), _labelled(judged)
    order = {name: number for number, name in enumerate(sorted(set(ours.values())))}
    theirs = {place: name for place, name in theirs.items() if name in order}
    if not ours or not theirs:
        raise Impossible("no class with labelled examples both in training and held out")
    x, y = pooled(trained)[list(ours)], torch.tensor([order[name] for name in ours.values()])
    test, truths = pooled(judged)[list(theirs)], torch.tensor([order[name] for name in theirs.values()])
    x, y, test, truths = x.cpu(), y, test.cpu(), truths
    figures: dict[str, Any] = {
        "images": len(test),
        "training_images": len(x),
        "classes": len(order),
        "chance": 1 / len(order),
        "most_frequent_class": float((truths == y.bincount(minlength=len(order)).argmax()).double().mean()),
        **accuracies("knn", knn(x, y, test, len(order)), truths),
    }
    largest = int(y.bincount().max())
    for shots in context.bar([n for n in SHOTS if n <= largest], "few-shot"):
        hits = torch.stack(
            [
                few_shot(*draw(x, y, shots, context.seed + seed), test, len(order)).argmax(1) == truths
                for seed in range(SEEDS)
            ]
        )
        figures |= measured(f"shots_{shots}", hits.double().mean(0).tolist(), range(len(test)))
    scores = fit_linear(x, y, len(order), context.seed)(test)
    return Findings(figures | accuracies("linear", scores, truths))


def pooled(features: Features | Judged) -> Tensor:
    """[B, D]: pooled features, or where the model does not pool the mean of its tokens."""
    if features.pooled is not None:
        return features.pooled
    if features.valid is None:
        return features.tokens.mean(1)
    seen = features.valid[..., None]
    return (features.tokens * seen).sum(1) / seen.sum(1)


def knn(x: Tensor, y: Tensor, test: Tensor, classes: int) -> Tensor:
    """Votes [E, C] of the nearest training features."""
    near, index = (F.normalize(test, dim=-1) @ F.normalize(x, dim=-1).T).topk(min(NEIGHBOURS, len(x)), dim=1)
    return torch.zeros(len(test), classes).scatter_add_(1, y[index], (near / SHARPNESS).exp())


def draw(x: Tensor, y: Tensor, shots: int, seed: int) -> tuple[Tensor, Tensor]:
    """`shots` examples of each class, fewer where it has fewer."""
    shuffled = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    kept = torch.cat([shuffled[y[shuffled] == one][:shots] for one in y.unique()])
    return x[kept], y[kept]


def few_shot(x: Tensor, y: Tensor, test: Tensor, classes: int, l2: float = L2) -> Tensor:
    """Scores [E, C]: W = (X'X + l2 I)^-1 X'Y on whitened features with a constant one, Y in {-1, 1}; float64."""
    x, test = x.double(), test.double()
    mean, std = x.mean(0), x.std(0, correction=0) + 1e-5
    known, asked = (F.pad((some - mean) / std, (0, 1), value=CONSTANT) for some in (x, test))
    targets = 2 * F.one_hot(y, classes).double() - 1
    if len(known) >= known.shape[1]:
        ridge = known.T @ known + l2 * torch.eye(known.shape[1], dtype=torch.float64)
        return asked @ torch.linalg.solve(ridge, known.T @ targets)
    ridge = known @ known.T + l2 * torch.eye(len(known), dtype=torch.float64)
    return asked @ (known.T @ torch.linalg.solve(ridge, targets))


def _labelled(judged: Judged) -> dict[int, str]:
    return {place: key(names) for place, example in enumerate(judged.examples) if (names := label(example))}
