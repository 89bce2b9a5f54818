"""How far a mean over seeds and held-out images may be chance: both are drawn again."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from opensiglip.errors import UserError
from opensiglip.evaluation.metrics.scores import DRAWS

Values = dict[str, Any]  # what `measured` keeps of a figure: scores, clusters, perhaps weights


class Interval(NamedTuple):
    """A mean and its 95 % interval."""

    value: float
    low: float
    high: float


def over_seeds(one: Sequence[Values], less: Sequence[Values] | None = None) -> Interval:
    """The mean over seeds of a figure, or of its difference `one` - `less`, seed by seed and image by image.

    Percentile bootstrap, seed 0: images and seeds are drawn again, each by themselves, since every seed is judged on
    the same images (Owen, 2007: the pigeonhole bootstrap). With one seed only images are, which is then `measured`'s
    interval or `difference`'s. Drawing from S seeds shows (S - 1) / S of their variance, so their deviations are
    widened by as much. Raises UserError where not all were judged on the same images.
    """
    totals, counts = _by_image(one)
    if less is not None:
        others, their_counts = _by_image(less)
        if others.shape != totals.shape or not np.array_equal(counts, their_counts):
            raise UserError("the runs were not judged on the same examples; delete their folders `judged`.")
        totals = totals - others
    seeds, images = totals.shape
    drawn = np.random.default_rng(0).integers(images, size=(DRAWS, images))
    means = np.stack([row[drawn].sum(1) for row in totals]) / counts[drawn].sum(1)  # [S, DRAWS]
    centre = means.mean(0)
    if seeds > 1:
        chosen = np.random.default_rng(1).integers(seeds, size=(seeds, DRAWS))
        centre = centre + (np.take_along_axis(means, chosen, 0).mean(0) - centre) * (seeds / (seeds - 1)) ** 0.5
    low, high = np.percentile(centre, [2.5, 97.5])
    return Interval(float(totals.sum() / counts.sum() / seeds), float(low), float(high))


def _by_image(values: Sequence[Values]) -> tuple[np.ndarray, np.ndarray]:
    """Weighted sums of the scores [S, I] and weights [I], by seed and image."""
    first = values[0]
    for other in values[1:]:
        if other["clusters"] != first["clusters"] or other.get("weights") != first.get("weights"):
            raise UserError("the seeds were not judged on the same examples; delete their folders `judged`.")
    group = np.unique(first["clusters"], return_inverse=True)[1]
    weight = np.asarray(first.get("weights", np.ones(len(group))))
    totals = [np.bincount(group, np.asarray(some["scores"]) * weight) for some in values]
    return np.stack(totals), np.bincount(group, weight)
