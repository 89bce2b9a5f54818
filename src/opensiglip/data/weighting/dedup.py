"""Which rows of a train split repeat an earlier one or a held-out image, and so have weight 0."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from opensiglip.data.stats.duplicates import Clusters, joined

Ints = NDArray[np.int64]

BLOCK = 4096  # rows of embeddings that are compared with as many at a time
PAIRS = 8  # that are named


@dataclass(frozen=True)
class Kept:
    """`weights` [rows], 0 or 1; rows that repeat, and the row that each repeats; train's rows that are held out too."""

    weights: NDArray[np.float64]
    repeats: list[tuple[int, int]]
    leaks: list[tuple[int, int]]  # row of train, and the held-out one, both numbered on over all splits


def cluster(count: int, *clusters: Clusters) -> Ints:
    """The label of each of `count` rows [count] where rows that any of the clusterings joins are one cluster."""
    labels = np.arange(count)
    for one in clusters:
        labels = joined(labels, np.arange(count), one.labels)
    return labels


def alike(embeddings: Tensor, cosine: float) -> Clusters:
    """Clusters of embeddings [N, D], of norm 1, that are as near as `cosine`, step by step; a blocked product."""
    labels = np.arange(len(embeddings))
    for first in range(0, len(embeddings), BLOCK):
        rows = embeddings[first : first + BLOCK]
        for other in range(first, len(embeddings), BLOCK):
            near = rows @ embeddings[other : other + BLOCK].T >= cosine
            one, two = near.nonzero().numpy().T
            labels = joined(labels, first + one, other + two)
    return Clusters(labels)


def keep(rows: int, indices: Ints, labels: Ints, group: Callable[[int], str]) -> Kept:
    """Weights of the train split's `rows` rows.

    indices [N] are the rows that were compared, numbered on from train's over the held-out splits, and labels [N] their
    clusters. Of a cluster with a held-out row all of train is left out; of another all but its first row, and the rows
    of the same `group` as that: they are known to show one image, each with a text of its own. What could not be read
    keeps its weight.
    """
    weights, repeats, leaks = np.ones(rows), list[tuple[int, int]](), list[tuple[int, int]]()
    held_out = {int(label): int(row) for row, label in zip(indices, labels, strict=True) if row >= rows}
    firsts: dict[int, int] = {}
    for row, label in zip(indices.tolist(), labels.tolist(), strict=True):
        if row >= rows:
            continue
        if label in held_out:
            leaks.append((row, held_out[label]))
        elif (first := firsts.setdefault(label, row)) != row and group(first) != group(row):
            repeats.append((row, first))
        else:
            continue
        weights[row] = 0
    return Kept(weights, repeats, leaks)
