"""The column `objects` of detection data sets on the hub, as imagefolder's {"bbox": [...], "categories": [...]}."""

from collections.abc import Mapping, Sequence
from typing import Any

NAMES = ("categories", "category", "labels", "label", "classes", "class", "category_name", "class_name")
BOXES = ("bbox", "bboxes", "box", "boxes")
MAX_DEPTH = 8  # of a feature's description


def normalise_objects(value: Any, categories: Sequence[str]) -> Any:
    """Boxes and the names of their categories, of a dict of lists or a list of dicts; `categories`: names by number.

    What is neither stays as it is, for the row checker to refuse.
    """
    if isinstance(value, Mapping):
        boxes, names = usual(value, BOXES), usual(value, NAMES)
    elif isinstance(value, list | tuple) and all(isinstance(one, Mapping) for one in value):
        boxes, names = ([usual(one, keys) for one in value] for keys in (BOXES, NAMES))
    else:
        return value
    if not isinstance(boxes, list) or not isinstance(names, list):
        return value
    return {"bbox": boxes, "categories": [name_of(one, categories) for one in names]}


def usual(value: Mapping[str, Any], names: Sequence[str]) -> Any:
    """What stands under the first of these names."""
    return next((value[name] for name in names if name in value), None)


def name_of(value: Any, categories: Sequence[str]) -> Any:
    """The name of a numbered category."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(categories):
        return categories[value]
    return value


def category_names(feature: Any, depth: int = MAX_DEPTH) -> tuple[str, ...]:
    """The names in the description that `datasets` writes of a column with a ClassLabel anywhere in it; () without."""
    if depth and isinstance(feature, dict):
        names = feature.get("names")
        if feature.get("_type") == "ClassLabel" and isinstance(names, list):
            return tuple(map(str, names))
        return next((found for one in feature.values() if (found := category_names(one, depth - 1))), ())
    if depth and isinstance(feature, list):
        return next((found for one in feature if (found := category_names(one, depth - 1))), ())
    return ()
