"""Numbers counted in bounded memory: each rounded to three digits, so a quantile is right to half a percent."""

import math
from collections import Counter
from typing import Any


class Histogram:
    """How often each number came; whole numbers below 1,000 are counted exactly, as are the ends and the mean."""

    def __init__(self) -> None:
        self.counts = Counter[float]()
        self.total, self.low, self.high = 0.0, math.inf, -math.inf

    def __len__(self) -> int:
        return self.counts.total()

    def add(self, value: float) -> None:
        """Count a number."""
        self.counts[float(f"{value:.3g}")] += 1
        self.total += value
        self.low, self.high = min(self.low, value), max(self.high, value)

    def merge(self, other: "Histogram") -> None:
        """Count all that another did."""
        self.counts.update(other.counts)
        self.total += other.total
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    def quantile(self, share: float) -> float:
        """The number that `share` of all are at most."""
        wanted, seen = share * len(self), 0
        for value in sorted(self.counts):
            seen += self.counts[value]
            if seen >= wanted:
                return min(max(value, self.low), self.high)
        return self.high

    def above(self, bound: float) -> int:
        """How many are larger."""
        return sum(count for value, count in self.counts.items() if value > bound)

    def facts(self) -> dict[str, Any]:
        """Count, mean, ends and quantiles, for JSON; only the count where there is nothing."""
        if not len(self):
            return {"count": 0}
        quantiles = {f"p{round(100 * share)}": self.quantile(share) for share in (0.05, 0.5, 0.95)}
        return {"count": len(self), "mean": self.total / len(self), "min": self.low, **quantiles, "max": self.high}
