"""Shares of sources by a rule: `--data-weights size`, `equal` or `temperature:A`."""

from collections.abc import Sequence

from opensiglip.data.example import Source
from opensiglip.data.sources.spec import split_weight
from opensiglip.errors import UserError

RULES = {"size": 1.0, "equal": 0.0}  # the power of a source's number of examples


def parse_weights(rule: str, specs: Sequence[str] = ()) -> float:
    """The power A of a rule; a source of n examples has the weight n^A. Raises UserError."""
    name, _, number = rule.partition(":")
    try:
        power = RULES[rule] if name != "temperature" else float(number)
    except (KeyError, ValueError):
        power = -1.0
    if not 0 <= power <= 1:
        raise UserError(f"--data-weights {rule!r} is not size, equal or temperature:A with A from 0 to 1.")
    if weighted := [spec for spec in specs if split_weight(spec)[1] is not None]:
        raise UserError(f"--data-weights {rule} and --data {weighted[0]} both set a share; give one of them.")
    return power


def weigh(sources: Sequence[Source], rule: str) -> None:
    """Give each source its weight. Raises UserError."""
    power = parse_weights(rule)
    for source in sources:
        source.weight = float(source.epoch_rows) ** power
