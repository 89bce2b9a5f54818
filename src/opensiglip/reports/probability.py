"""Probabilities as people read them: two digits, however small they are, and shares of what was asked."""

from collections.abc import Mapping

LEAST = 1e-6  # below this a probability is only said to be smaller
NEAREST = 1e-7  # to 0 and 1: float32 rounds a sigmoid to 1, whose odds are infinite


def probability_text(probability: float) -> str:
    """In percent with two digits: "34 %", "3.4 %", "0.0034 %"; near the ends "< 0.0001 %" and "> 99.9 %"."""
    if probability < LEAST:
        return f"< {100 * LEAST:.4f} %"
    if probability >= 0.9995:
        return "> 99.9 %"
    if probability >= 0.995:
        return f"{100 * probability:.1f} %"
    return f"{100 * probability:.2g} %"


def shares_by_odds(probabilities: Mapping[str, float]) -> dict[str, float]:
    """Each label's share of the odds of all: the softmax of the logits whose sigmoids the probabilities are."""
    near = {label: min(1 - NEAREST, max(NEAREST**5, one)) for label, one in probabilities.items()}
    odds = {label: one / (1 - one) for label, one in near.items()}
    total = sum(odds.values())
    return {label: one / total for label, one in odds.items()}
