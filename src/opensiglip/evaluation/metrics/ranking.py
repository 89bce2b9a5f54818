"""Ranks in retrieval, and top-k accuracy of classification."""

from typing import Any

import torch
from torch import Tensor

from opensiglip.evaluation.metrics.intervals import mean_with_interval

BLOCK = 2**25  # scores held at once


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


def accuracies(name: str, scores: Tensor, targets: Tensor) -> dict[str, Any]:
    """{name: top-1, name_top5: top-5} with intervals; scores [E, C], targets [E]. Equal scores stand in class order."""
    nearest = scores.nan_to_num(nan=-torch.inf).argsort(dim=1, descending=True, stable=True)[:, :5]
    hits = nearest == targets[:, None]
    return {
        **mean_with_interval(name, hits[:, 0].tolist(), range(len(hits))),
        **mean_with_interval(f"{name}_top5", hits.any(1).tolist(), range(len(hits))),
    }
