"""Means and other statistics over images, with 95 % intervals: the one bootstrap of the package.

Percentile bootstrap over images, seed 0. Every statistic here is a function of sums over images, so a draw needs only
the sums over the images that it takes.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

DRAWS = 1000
VALUES = "_values"  # ends the name of what a mean is taken over, beside the mean


class Interval(NamedTuple):
    """A statistic and its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def around(cls, value: float, draws: np.ndarray) -> "Interval":
        """The central 95 % of the draws [DRAWS], widened to hold the value where their percentiles miss it."""
        low, high = np.percentile(draws, [2.5, 97.5])
        return cls(float(value), min(float(low), float(value)), max(float(high), float(value)))

    def as_metrics(self, name: str) -> dict[str, Any]:
        """{name: value, name_ci95: [low, high]}."""
        return {name: self.value, f"{name}_ci95": [self.low, self.high]}


def resampled_sums(columns: np.ndarray) -> np.ndarray:
    """Columns [I, K] of numbers by image -> [DRAWS, K]: their sums over images drawn with replacement."""
    drawn = np.random.default_rng(0).integers(len(columns), size=(DRAWS, len(columns)))
    return np.stack([column[drawn].sum(1) for column in np.ascontiguousarray(columns.T)], axis=1)


def bootstrap(columns: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]) -> Interval:
    """`statistic`, from sums [..., K] to numbers [...], of the sum over images of `columns` [I, K]."""
    return Interval.around(float(statistic(columns.sum(0))), statistic(resampled_sums(columns)))


def mean_with_interval(
    name: str,
    scores: Sequence[float | bool],
    images: Sequence[int],
    weights: Sequence[float] | None = None,
) -> dict[str, Any]:
    """{name: mean, name_ci95: [low, high], name_values: what the mean is taken over}; score i belongs to `images[i]`.

    The values are kept because models are compared image by image (`paired_difference`). `weights` of the scores, all
    alike if not given, make a mean over languages one over languages.
    """
    values: dict[str, Any] = {"scores": np.asarray(scores, float).tolist(), "clusters": list(images)}
    if weights is not None:
        values["weights"] = np.asarray(weights, float).tolist()
    totals, counts = _by_image(values)
    draws = resampled_sums(np.stack([totals, counts], axis=1))
    mean = np.average(values["scores"], weights=values.get("weights"))
    return Interval.around(mean, draws[:, 0] / draws[:, 1]).as_metrics(name) | {f"{name}{VALUES}": values}


def paired_difference(values: dict[str, Any], baseline: dict[str, Any]) -> Interval | None:
    """The mean of `values` less that of `baseline`, drawn for both at once; None where they are of other examples."""
    if not same_examples([values, baseline]):
        return None
    weight = np.asarray(values.get("weights", np.ones(len(values["scores"]))))
    gain = (np.asarray(values["scores"]) - np.asarray(baseline["scores"])) * weight
    image = np.unique(values["clusters"], return_inverse=True)[1]
    draws = resampled_sums(np.stack([np.bincount(image, gain), np.bincount(image, weight)], axis=1))
    return Interval.around(gain.sum() / weight.sum(), draws[:, 0] / draws[:, 1])


def mean_over_seeds(values: Sequence[dict[str, Any]], baseline: Sequence[dict[str, Any]] | None = None) -> Interval:
    """The mean over seeds of a metric, or of its difference from `baseline`, seed by seed and image by image.

    Images and seeds are drawn again, each by themselves, since every seed is judged on the same images (Owen, 2007: the
    pigeonhole bootstrap). With one seed only images are, which gives the interval of `mean_with_interval` or of
    `paired_difference`. Drawing from S seeds shows (S - 1) / S of their variance, so their deviations are widened by as
    much. Raises ValueError where not all were judged on the same examples.
    """
    if not same_examples([*values, *(baseline or [])]):
        raise ValueError("not evaluated on the same examples")
    totals, counts = zip(*map(_by_image, values), strict=True)
    sums, count = np.stack(totals, axis=1), counts[0]  # [I, S], [I]
    if baseline is not None:
        sums = sums - np.stack([_by_image(some)[0] for some in baseline], axis=1)
    seeds = sums.shape[1]
    draws = resampled_sums(np.concatenate([sums, count[:, None]], axis=1))
    means = (draws[:, :-1] / draws[:, -1:]).T  # [S, DRAWS]
    centre = means.mean(0)
    if seeds > 1:
        chosen = np.random.default_rng(1).integers(seeds, size=(seeds, DRAWS))
        centre = centre + (np.take_along_axis(means, chosen, 0).mean(0) - centre) * (seeds / (seeds - 1)) ** 0.5
    return Interval.around(sums.sum() / count.sum() / seeds, centre)


def same_examples(values: Sequence[dict[str, Any]]) -> bool:
    """Are these values of the same examples, in the same order, with the same weights?"""
    first = values[0]
    return all(
        some["clusters"] == first["clusters"] and some.get("weights") == first.get("weights") for some in values[1:]
    )


def split_values(metrics: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metrics without what their means are taken over; and that, by the flat name of the metric."""
    values = {name.removesuffix(VALUES): some for name, some in flatten(metrics).items() if name.endswith(VALUES)}
    return _without_values(metrics), values


def flatten(metrics: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every metric, those of a part named after it: {"image": {"knn": 1}} is {"image: knn": 1}."""
    found: dict[str, Any] = {}
    for name, some in metrics.items():
        nested = isinstance(some, dict) and not name.endswith(VALUES)
        found |= flatten(some, f"{prefix}{name}: ") if nested else {prefix + name: some}
    return found


def _by_image(values: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Weighted sums of the scores, and of the weights, by image: [I] and [I]."""
    image = np.unique(values["clusters"], return_inverse=True)[1]
    weight = np.asarray(values.get("weights", np.ones(len(image))))
    return np.bincount(image, np.asarray(values["scores"]) * weight), np.bincount(image, weight)


def _without_values(metrics: dict[str, Any]) -> dict[str, Any]:
    kept = {name: some for name, some in metrics.items() if not name.endswith(VALUES)}
    return {name: _without_values(some) if isinstance(some, dict) else some for name, some in kept.items()}
