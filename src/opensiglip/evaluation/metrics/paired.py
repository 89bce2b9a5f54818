"""Two models on the same examples: the difference of a figure, and how far it may be chance."""

from typing import Any

import numpy as np

VALUES, DRAWS = "_values", 1000


def apart(figures: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A task's figures without what their means are taken over; and that, by figure."""
    values = {name.removesuffix(VALUES): some for name, some in flat(figures).items() if name.endswith(VALUES)}
    return _without(figures), values


def flat(figures: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Every figure, those of a part named after it: {"image": {"knn": 1}} is {"image: knn": 1}."""
    found: dict[str, Any] = {}
    for name, some in figures.items():
        nested = isinstance(some, dict) and not name.endswith(VALUES)
        found |= flat(some, f"{above}{name}: ") if nested else {above + name: some}
    return found


def difference(one: dict[str, Any], other: dict[str, Any]) -> tuple[float, float, float] | None:
    """Mean of `other` less mean of `one`, and its 95 % interval; None where they are not of the same examples.

    Percentile bootstrap over images, drawn for both at once, seed 0.
    """
    if one["clusters"] != other["clusters"] or one.get("weights") != other.get("weights"):
        return None
    group = np.unique(one["clusters"], return_inverse=True)[1]
    weight = np.asarray(one.get("weights", np.ones(len(group))))
    gain = (np.asarray(other["scores"]) - np.asarray(one["scores"])) * weight
    totals, counts = np.bincount(group, gain), np.bincount(group, weight)
    drawn = np.random.default_rng(0).integers(len(totals), size=(DRAWS, len(totals)))
    low, high = np.percentile(totals[drawn].sum(1) / counts[drawn].sum(1), [2.5, 97.5])
    return float(gain.sum() / weight.sum()), float(low), float(high)


def _without(figures: dict[str, Any]) -> dict[str, Any]:
    kept = {name: some for name, some in figures.items() if not name.endswith(VALUES)}
    return {name: _without(some) if isinstance(some, dict) else some for name, some in kept.items()}
