"""Weights that match moments of sensitive attributes: data balancing as in "CLIP the bias" (arXiv:2403.04547, M4).

Rows of equal values have equal weights, so the problem is one over patterns, however many rows there are. Of all
weights w with mean 1 and 0 <= w <= `most`, those of least sum (w - 1)^2 such that, among the rows that show the
attribute,

    representation  |E[s - p]| <= tolerance              the share of a value is its target's, p = 1 / values
    association     |E[s - p | y]| / d <= tolerance      so it is among the rows of a target y

s is 1 for rows of the value; a row that shows several has an equal part of each. d = sqrt(p (1 - p) (1 - m) / m),
where m is the share of rows with y: the second is then the correlation of s and y, which is as strict for rare targets
as for common ones. The moments are those of the paper. The division by d, and that only rows which show the attribute
count, are ours; so is the mean over the rows of y, or weighing those down would seem to part y from the value.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opensiglip.data.weighting.attributes import Shown
from opensiglip.data.weighting.lexicon import Value
from opensiglip.errors import UserError

Floats = NDArray[np.float64]

CELLS = 20_000_000  # moments x patterns that are solved in memory
INSIDE = 0.99  # of the tolerance, so that rounded weights still meet it
SLACK = 1e-6  # of constraints scaled to a standard deviation of 1


@dataclass(frozen=True)
class Moment:
    """A mean of `terms` [P] over the patterns where `shown` [P], to be 0; `part` [P] is s, `target` is y."""

    value: Value
    target: Value | None
    terms: Floats
    shown: Floats
    part: Floats

    def __str__(self) -> str:
        return "=".join(self.value) + ("" if self.target is None else f" with {'='.join(self.target)}")

    def of(self, mass: Floats) -> float:
        """The moment where patterns have this mass [P]; 0 where nothing is shown."""
        whole = float(mass @ self.shown)
        return float(mass @ self.terms) / whole if whole else 0.0


def moments_of(shown: Shown, sensitive: Sequence[str], targets: Sequence[str]) -> list[Moment]:
    """Every value of the sensitive attributes alone, then with every value of the targets. Raises UserError."""
    patterns, counts, found = shown.patterns, shown.counts, list[Moment]()
    wanted = [value for name in targets for value in shown.values(name)]
    values = {name: shown.values(name) for name in sensitive}
    cells = sum(map(len, values.values())) * (1 + len(wanted)) * len(patterns)
    if cells > CELLS:
        raise UserError(f"{cells} moments x sets of values are too many to balance; name attributes of fewer values.")
    has = {value: np.array([value in pattern for pattern in patterns], float) for value in wanted}
    for name, own in values.items():
        if len(own) == 1:
            raise UserError(f"all rows that show {name!r} show {own[0][1]!r}; there is nothing to balance it with.")
        sizes = np.array([sum(value[0] == name for value in pattern) for pattern in patterns], float)
        present = (sizes > 0).astype(float)
        mass, share = counts * present / (counts @ present), 1 / len(own)
        for value in own:
            part = np.array([value in pattern for pattern in patterns]) / np.maximum(sizes, 1)
            centred = (part - share) * present
            found.append(Moment(value, None, centred, present, part))
            for target in wanted:
                mean = float(mass @ has[target])
                if target[0] != name and 0 < mean < 1:
                    scale = (share * (1 - share) * (1 - mean) / mean) ** 0.5
                    found.append(Moment(value, target, centred * has[target] / scale, present * has[target], part))
    return found


def solve(counts: NDArray[np.int64], moments: Sequence[Moment], tolerance: float, most: float) -> Floats:
    """The weight of each pattern [P], mean 1 over rows. Raises UserError where no weights meet the moments.

    The dual has a variable for each side of each moment and one for the mean; it is smooth, with bounds.
    """
    try:
        from scipy.optimize import linprog, minimize
    except ImportError:
        raise UserError("data balance needs scipy; pip install 'opensiglip[eval]'.") from None
    mass, inside = counts / counts.sum(), INSIDE * tolerance
    sides = [sign * moment.terms - inside * moment.shown for moment in moments for sign in (1, -1)]
    bounds = np.stack(sides, 1)  # [P, J]: the mean of w times each is to be at most 0
    bounds /= np.sqrt(mass @ bounds**2)
    weighed, count = mass[:, None] * bounds, len(sides)
    found = linprog(
        np.concatenate([np.zeros(len(mass)), np.ones(count)]),
        A_ub=np.concatenate([weighed.T, -np.eye(count)], 1),
        b_ub=np.zeros(count),
        A_eq=np.concatenate([mass, np.zeros(count)])[None],
        b_eq=[1],
        bounds=[(0, most)] * len(mass) + [(0, None)] * count,
    )
    if found.x is None or found.fun > SLACK:
        worst = "the mean of 1" if found.x is None else str(moments[int(np.argmax(found.x[len(mass) :])) // 2])
        raise UserError(
            f"no weights up to --most {most:g} bring {worst} within --tolerance {tolerance:g}; give more of either, or "
            "attributes of fewer values."
        )

    def dual(variables: Floats) -> tuple[float, Floats]:
        price = variables[0] + bounds @ variables[1:]
        weights = np.clip(1 - price, 0, most)
        value = mass @ (0.5 * (weights - 1) ** 2 + price * weights) - variables[0]
        return -float(value), -np.concatenate([[mass @ weights - 1], weights @ weighed])

    limits = [(None, None)] + [(0, None)] * count
    options = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 1e-16, "gtol": 1e-10}
    best = minimize(dual, np.zeros(1 + count), jac=True, method="L-BFGS-B", bounds=limits, options=options).x
    weights: Floats = np.clip(1 - best[0] - bounds @ best[1:], 0, most)
    weights /= mass @ weights
    missed = max(moments, key=lambda moment: abs(moment.of(mass * weights)))
    if abs(missed.of(mass * weights)) > tolerance:
        raise UserError(
            f"weights that bring {missed} within --tolerance {tolerance:g} were not found; give more of it."
        )
    return weights


def facts(shown: Shown, moments: Sequence[Moment], weights: Floats) -> dict[str, Any]:
    """What balancing did, as JSON holds it: moments and shares before and after, and the effective sample size.

    That is Kish's: (sum w)^2 / sum w^2, the rows that equal weights would need for as certain a mean.
    """
    counts = shown.counts.astype(float)
    after = counts * weights
    attributes = sorted({value[0] for pattern in shown.patterns for value in pattern})
    told = []
    for moment in moments:
        of = [mass * moment.shown for mass in (counts, after)]
        shares = [float(mass @ moment.part / mass.sum()) if mass.any() else None for mass in of]
        told.append(
            {
                "value": "=".join(moment.value),
                "target": None if moment.target is None else "=".join(moment.target),
                "rows": int(of[0].sum()),
                "share": shares,
                "moment": [moment.of(counts), moment.of(after)],
            }
        )
    return {
        "rows": len(shown.rows),
        "broken": dict(shown.broken.most_common()),
        "rows_that_show": {
            name: int(sum(n for p, n in zip(shown.patterns, shown.counts, strict=True) if any(v[0] == name for v in p)))
            for name in attributes
        },
        "sets_of_values": len(shown.patterns),
        "effective_rows": float(after.sum() ** 2 / (counts @ weights**2)),
        "largest_weight": float(weights[counts > 0].max()),
        "rows_of_weight_0": int(counts[weights == 0].sum()),
        "moments": told,
    }
