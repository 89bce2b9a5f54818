"""The regions and masks of one row of `metadata.jsonl`, checked; those that can not be used are counted."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from opensiglip.data.example import BrokenExample, Region
from opensiglip.data.sources.box_layout import BoxLayout
from opensiglip.data.sources.values import (
    MAX_COUNT,
    checked_text,
    is_number,
    parse_language,
    parse_list,
)

MAX_CORNERS = 2000  # of one outline: to simplify it takes time with their square


def parse_masks(masks: Any) -> tuple[list[Any], Counter[str]]:
    """The masks whose outlines are numbers, not too many; and why the others can't be used."""
    kept, dropped = [], Counter[str]()
    for mask in masks if isinstance(masks, list) else [masks]:
        polygons = mask.get("polygons") if isinstance(mask, dict) else None
        if not isinstance(polygons, list) or not all(map(_is_outline, polygons)):
            dropped["mask: not {label, polygons} with x1, y1, x2, y2, x3, y3, ... in each"] += 1
        elif any(len(corners) > 2 * MAX_CORNERS for corners in polygons):
            dropped[f"mask: over {MAX_CORNERS:,} corners"] += 1
        else:
            kept.append(mask)
    return kept, dropped


def _is_outline(value: Any) -> bool:
    return isinstance(value, list) and len(value) >= 6 and len(value) % 2 == 0 and all(map(is_number, value))


Size = tuple[float, float] | None


def parse_regions(
    row: dict[str, Any], language: str, size: Size, layout: BoxLayout
) -> tuple[tuple[Region, ...], Counter[str]]:
    """The regions that can be used, and why the others can't. Boxes are checked against `size` where it is known."""
    return _usable(parse_list(row, "regions"), lambda item: parse_region(item, language, size, layout))


def parse_objects(
    row: dict[str, Any], language: str, size: Size, layout: BoxLayout
) -> tuple[tuple[Region, ...], Counter[str]]:
    """The regions of imagefolder's own column, {"bbox": [[x, y, width, height], ...], "categories": [name, ...]}."""
    given = row.get("objects")
    if given is None:
        return (), Counter()
    boxes, names = (given.get("bbox"), given.get("categories")) if isinstance(given, dict) else (None, None)
    if not isinstance(boxes, list) or not isinstance(names, list) or len(boxes) != len(names):
        raise BrokenExample("objects is not {bbox, categories}, lists of one length")
    counts = Counter(name for name in names if isinstance(name, str))

    def parse(item: tuple[Any, Any]) -> Region:
        box, name = item
        if not isinstance(name, str):
            raise BrokenExample("category is not a name")
        return parse_region({"bbox": box, "phrase": name, "n_boxes": counts[name]}, language, size, layout)

    return _usable(list(zip(boxes, names, strict=True)), parse)


def _usable(items: list[Any], parse: Callable[[Any], Region]) -> tuple[tuple[Region, ...], Counter[str]]:
    regions, dropped = [], Counter[str]()
    for item in items:
        try:
            regions.append(parse(item))
        except BrokenExample as reason:
            dropped[f"region: {reason}"] += 1
    return tuple(regions), dropped


def parse_region(item: Any, language: str, size: Size, layout: BoxLayout) -> Region:
    """One region; its box in the layout's unit, checked against the size where that is known."""
    if not isinstance(item, dict):
        raise BrokenExample("not an object")
    box = layout.read(item.get("bbox"))
    n_boxes = item.get("n_boxes", 1)
    if not is_number(n_boxes) or n_boxes != int(n_boxes) or not 1 <= n_boxes <= MAX_COUNT:
        raise BrokenExample("n_boxes is not a positive whole number")
    given = item.get("phrases") or {}
    if not isinstance(given, dict):
        raise BrokenExample("phrases is not an object")
    phrases = {language: item.get("phrase")} | {parse_language(code): phrase for code, phrase in given.items()}
    if not all(phrase is None or isinstance(phrase, str) for phrase in phrases.values()):
        raise BrokenExample("phrase is not a string")
    texts = {code: text for code, phrase in phrases.items() if (text := checked_text(phrase or ""))}
    if not texts:
        raise BrokenExample("no phrase")
    if size is not None:
        fitted = layout.fit(box, *size)
        box = box if layout.relative else fitted  # shares become pixels once the image is read
    return Region(box, texts, int(n_boxes), parse_names(item), parse_mask(item), parse_score(item))


def parse_names(item: dict[str, Any]) -> dict[str, str]:
    """What kind of thing a region is, by language."""
    names = item.get("names") or {}
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise BrokenExample("names is not an object of texts")
    return {parse_language(code): text for code, name in names.items() if (text := checked_text(name))}


def parse_mask(item: dict[str, Any]) -> int | None:
    """A region's place in the row's masks."""
    mask = item.get("mask")
    if mask is not None and not (isinstance(mask, int) and not isinstance(mask, bool) and 0 <= mask < MAX_COUNT):
        raise BrokenExample("mask is not the number of a mask")
    return mask


def parse_score(item: dict[str, Any]) -> float | None:
    """How sure a detector was, 0 to 1."""
    score = item.get("score")
    if score is not None and not (is_number(score) and 0 <= score <= 1):
        raise BrokenExample("score is not a number from 0 to 1")
    return None if score is None else float(score)


def unmasked(regions: tuple[Region, ...]) -> tuple[Region, ...]:
    """The regions without their masks' places, which no longer hold where a mask was left out."""
    return tuple(replace(region, mask=None) for region in regions)
