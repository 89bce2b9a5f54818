"""An example as a row of metadata.jsonl, which `metadata.parse_record` reads back to the same example."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from opensiglip.data.example import Caption, Example, Region
from opensiglip.data.sources.metadata import EXTRAS


def row_of(example: Example) -> dict[str, Any]:
    """An example's name, texts, regions and optional columns."""
    row: dict[str, Any] = {"key": example.name} if example.name else {}
    if example.captions:
        row["captions_i18n"] = to_columns(example.captions)
    row |= {name: value for name, value in example.extras.items() if name in EXTRAS}
    if example.regions:
        row["regions"] = [to_region(region) for region in example.regions]
    if synthetic := example.extras.get("captions_synthetic"):
        row["captions_synthetic"] = to_columns(synthetic)
    return row


def plain_row(example: Example) -> tuple[dict[str, Any], Counter[str]]:
    """The same without the columns that JSON does not hold, such as masks of pixels; and what those are."""
    row, lost = row_of(example), Counter[str]()
    lost.update(f"column {name} is not written" for name in example.extras.keys() - row.keys())
    for name in EXTRAS:
        if name in row and not is_json(row[name]):
            del row[name]
            lost[f"column {name} is not JSON"] += 1
    if "masks" not in row:
        for region in row.get("regions", ()):
            region.pop("mask", None)
    return row, lost


def to_columns(captions: Sequence[Caption]) -> list[dict[str, Any]]:
    return [
        {"lang": one.language, "text": one.text, "source": one.source}
        | ({} if one.weight == 1 else {"weight": one.weight})
        for one in captions
    ]


def to_region(region: Region) -> dict[str, Any]:
    columns = {**vars(region), "bbox": list(region.bbox)}
    return {name: value for name, value in columns.items() if value not in (None, {})}


def is_json(value: Any) -> bool:
    """Does JSON give the value back as it is?"""
    try:
        return bool(json.loads(json.dumps(value, allow_nan=False)) == value)
    except (TypeError, ValueError, RecursionError):
        return False
