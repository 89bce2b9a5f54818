"""What answers are scored by: overlap of boxes, ranks, means with bootstrap intervals."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opensiglip.data.example import Box

BLOCK = 2**25  # scores held at once
DRAWS = 1000  # of a bootstrap


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union > 0 else 0.0


def measured(
    name: str,
    values: Sequence[float | bool],
    clusters: Sequence[int],
    weights: Sequence[float] | None = None,
) -> dict[str, Any]:
    """{name: mean, name_ci95: [low, high]}: percentile bootstrap over clusters (images), seed 0.

    And name_values, what the mean is taken over, which `judge` keeps apart: models are compared example by example.
    `weights` of the values, all alike if not given: what makes a mean over languages one over languages.
    """
    scores, group = np.asarray(values, float), np.unique(clusters, return_inverse=True)[1]
    weight = np.ones(len(scores)) if weights is None else np.asarray(weights, float)
    totals, counts = np.bincount(group, scores * weight), np.bincount(group, weight)
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(totals), size=(DRAWS, len(totals)))
    means = totals[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    behind = {"scores": scores.tolist(), "clusters": list(clusters)} | (
        {} if weights is None else {"weights": weight.tolist()}
    )
    return {
        name: float(np.average(scores, weights=weight)),
        f"{name}_ci95": [float(low), float(high)],
        f"{name}_values": behind,
    }


def ranks(queries: Tensor, candidates: Tensor, owners: Tensor, candidate_owners: Tensor) -> Tensor:
    """How many candidates stand before the first right one, for each query: [Q] int64; below k is a hit of R@k.

    queries [Q, D] and candidates [M, D], scored by their dot products; right is what has the same owner, of which each
    query must have one. Equal scores stand in the candidates' order, as in a stable sort, so a model that gives all the
    same embedding is at chance. Exact over all pairs; a block of them at a time.    (CLIP_benchmark: recall_at_k)
    """
    found = []
    place = torch.arange(len(candidates), device=candidates.device)
    rows = max(1, BLOCK // len(candidates))
    for some, who in zip(queries.split(rows), owners.split(rows), strict=True):
        scores = (some @ candidates.T).nan_to_num(nan=-torch.inf)  # [rows, M]
        right = who[:, None] == candidate_owners
        best = scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
        first = ((scores == best) & right).int().argmax(1, keepdim=True)
        found.append(((scores > best) | ((scores == best) & (place < first))).sum(1))
    return torch.cat(found)


def mean_iou(name: str, areas: Tensor) -> dict[str, Any]:
    """mIoU with its interval, from the areas [E, 3, C] of intersection, prediction and truth by image and class.

    Summed over images first, then intersection over union, then the mean over classes that are predicted or true
    anywhere. Percentile bootstrap over images, seed 0.
    """

    def score(total: Tensor) -> Tensor:  # [..., 3, C] -> [...]
        shared, found, true = total.double().unbind(-2)
        union = found + true - shared
        return (shared / union.clamp(min=1)).sum(-1) / (union > 0).sum(-1).clamp(min=1)

    rng = np.random.default_rng(0)
    drawn = torch.from_numpy(rng.multinomial(len(areas), np.full(len(areas), 1 / len(areas)), size=DRAWS))
    means = score((drawn.double() @ areas.double().flatten(1)).unflatten(1, areas.shape[1:]))
    low, high = np.percentile(means.numpy(), [2.5, 97.5])
    return {name: float(score(areas.sum(0))), f"{name}_ci95": [float(low), float(high)]}


def class_areas(found: Tensor, true: Tensor, classes: int, ignored: int = -1) -> Tensor:
    """[3, C] int64: pixels by class where two maps agree, of the first, of the second; `ignored` truth is left out."""
    kept = true != ignored
    found, true = found[kept], true[kept]
    counts = (some.bincount(minlength=classes) for some in (true[found == true], found, true))
    return torch.stack(list(counts))
