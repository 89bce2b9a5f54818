"""`evaluation.json`: what `opensiglip eval --out` leaves, written and read."""

import json
from pathlib import Path
from typing import Any

from opensiglip.errors import UserError
from opensiglip.evaluation.metrics.intervals import flatten
from opensiglip.json_file import load_json

FILE = "evaluation.json"
LARGEST = 500_000_000  # bytes of one
SHARED = ("data", "split", "examples", "seed")  # what evaluations must have in common to be compared


def to_json(record: dict[str, Any]) -> str:
    """The text of evaluation.json; its values, thousands of numbers, on one line."""
    metrics = {name: some for name, some in record.items() if name != "values"}
    values = json.dumps(record["values"], allow_nan=False)
    return json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False)[:-2] + f',\n  "values": {values}\n}}\n'


def find(model: str) -> Path | None:
    """The evaluation that a path names or holds."""
    path = Path(model).expanduser()
    path = path if path.suffix == ".json" else path / FILE
    return path if path.is_file() else None


def load(path: Path) -> dict[str, Any]:
    """A stored evaluation, as `comparable` leaves it. Raises UserError if it is none."""
    try:
        return comparable(load_json(path, LARGEST))
    except (AttributeError, KeyError, OSError, RecursionError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not an evaluation ({error}); make one with `opensiglip eval MODEL --out DIR`."
        ) from error


def comparable(record: dict[str, Any]) -> dict[str, Any]:
    """What is compared of an evaluation: by benchmark and name the metrics that have an interval, and their values.

    Raises KeyError, TypeError, ValueError or AttributeError on anything else.
    """
    metrics, values = {}, {}
    for benchmark, nested in record["tasks"].items():
        flat = flatten(nested)
        for name in flat:
            if f"{name}_ci95" in flat:
                low, high = flat[f"{name}_ci95"]
                metrics[benchmark, name] = (float(flat[name]), [float(low), float(high)])
        for name, some in record["values"].get(benchmark, {}).items():
            kinds = {"scores": float, "clusters": int} | ({"weights": float} if "weights" in some else {})
            numbers = {kind: [number(x) for x in some[kind]] for kind, number in kinds.items()}
            if {len(column) for column in numbers.values()} != {len(numbers["scores"]) or 1}:
                raise ValueError(f"the values of {name} are not of one length")
            values[benchmark, name] = numbers
    return {what: record[what] for what in ("model", *SHARED)} | {"metrics": metrics, "values": values}
