"""One line of `metadata.jsonl`, checked: everything in it is somebody else's, so nothing is taken on trust."""

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from opensiglip.data.example import Box, BrokenExample, Caption, Region

NO_TEXT = "no caption and no region"
MAX_LINE = 4_000_000  # bytes; a photo's row is some thousands
MAX_DEPTH = 16  # of what stands inside an optional column: deeper is an attack on the stack, not an annotation
MAX_COUNT = 1_000_000  # of an image's pixels along a side, of a phrase's boxes

# Optional columns that are handed on unread; their meaning is the affair of whoever asks for them.
EXTRAS = ("label", "groups", "qa", "ocr", "masks", "depth", "geometry", "negative_caption")
SPLITS = {"train": "train", "val": "val", "validation": "val", "test": "test"}
LANGUAGE = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{1,8}){0,3}")


@dataclass(frozen=True)
class Row:
    """What one line says; `dropped` counts, by reason, the regions it lost."""

    file_name: str  # relative, with "/", normalised
    captions: tuple[Caption, ...]
    synthetic: tuple[Caption, ...]
    regions: tuple[Region, ...]
    split: str | None  # "train", "val", "test", or None where the line names none
    extras: dict[str, Any]
    dropped: Counter[str]

    def is_usable(self) -> bool:
        """Is there anything to learn or measure? Geometry alone only says how the image was made."""
        return bool(self.captions or self.regions or self.synthetic or self.extras.keys() - {"geometry"})

    def only(self, languages: Collection[str]) -> "Row":
        """The row with the texts in these languages, and the regions that still have a phrase."""
        regions = (
            replace(region, phrases={code: text for code, text in region.phrases.items() if code in languages})
            for region in self.regions
        )
        return replace(
            self,
            captions=tuple(caption for caption in self.captions if caption.language in languages),
            synthetic=tuple(caption for caption in self.synthetic if caption.language in languages),
            regions=tuple(region for region in regions if region.phrases),
        )


def parse_row(line: bytes) -> Row:
    """The row a line of JSON holds. Raises BrokenExample, with the reason, for a line that can't be used."""
    if len(line) > MAX_LINE:
        raise BrokenExample(f"line over {MAX_LINE // 1_000_000} MB")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # not JSON, not UTF-8, a number of thousands of digits, nested too deep
        raise BrokenExample("line is not JSON") from None
    if not isinstance(row, dict):
        raise BrokenExample("line is not a JSON object")
    file_name = parse_file_name(row.get("file_name"))
    language = parse_language(row.get("lang") or "en")
    regions, dropped = parse_regions(row, language, parse_size(row))
    parsed = Row(
        file_name,
        parse_captions(row, language),
        tuple(Caption(text, language, "synthetic") for text in parse_texts(row, "captions_synthetic") if text),
        regions,
        parse_split(row.get("split")),
        parse_extras(row),
        dropped,
    )
    if not parsed.is_usable():
        raise BrokenExample(NO_TEXT)
    return parsed


def parse_file_name(value: Any) -> str:
    """A relative path that stays below its folder as written (where links lead is the folder's to check)."""
    if not isinstance(value, str) or not value.strip():
        raise BrokenExample("no file_name")
    path = PurePosixPath(checked_text(value.replace("\\", "/")))
    if PureWindowsPath(path).anchor or ".." in path.parts:  # an anchor is "/", "C:" or "//server", on any system
        raise BrokenExample("path leaves the folder")
    return str(path)


def parse_language(value: Any) -> str:
    if not isinstance(value, str) or not LANGUAGE.fullmatch(value):
        raise BrokenExample("lang is not a language code")
    return value


def parse_split(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or value not in SPLITS:
        raise BrokenExample("split is not train, val or test")
    return SPLITS[value]


def parse_size(row: dict[str, Any]) -> tuple[float, float] | None:
    """(width, height) in pixels, or None where the row does not give both."""
    width, height = row.get("width"), row.get("height")
    for side in (width, height):
        if side is not None and not (is_number(side) and 1 <= side <= MAX_COUNT):
            raise BrokenExample("width or height is not a positive number")
    return None if width is None or height is None else (width, height)


def parse_captions(row: dict[str, Any], language: str) -> tuple[Caption, ...]:
    """The captions of every caption column, each once, in the row's order. Synthetic ones are extras."""
    captions = [Caption(text, language) for text in parse_texts(row, "captions")]
    for column in ("caption", "text"):
        text = row.get(column)
        if text is not None and not isinstance(text, str):
            raise BrokenExample(f"{column} is not a string")
        captions.append(Caption(checked_text(text or ""), language))
    for item in parse_list(row, "captions_i18n"):
        if not isinstance(item, dict) or not isinstance(item.get("text"), str):
            raise BrokenExample("captions_i18n is not a list of {lang, text, source}")
        source = item.get("source") or "human"
        if not isinstance(source, str):
            raise BrokenExample("captions_i18n is not a list of {lang, text, source}")
        captions.append(Caption(checked_text(item["text"]), parse_language(item.get("lang")), checked_text(source)))
    return tuple(dict.fromkeys(caption for caption in captions if caption.text))


def parse_extras(row: dict[str, Any]) -> dict[str, Any]:
    """The optional columns the row has, as JSON gave them."""
    extras = {column: row[column] for column in EXTRAS if row.get(column) is not None}
    if not is_shallow(extras, MAX_DEPTH):
        raise BrokenExample(f"columns nested over {MAX_DEPTH} deep")
    return extras


def parse_regions(
    row: dict[str, Any], language: str, size: tuple[float, float] | None
) -> tuple[tuple[Region, ...], Counter[str]]:
    """The regions that can be used, and why the others can't. Boxes are checked against `size` where it is known."""
    regions, dropped = [], Counter[str]()
    for item in parse_list(row, "regions"):
        try:
            regions.append(parse_region(item, language, size))
        except BrokenExample as reason:
            dropped[f"region: {reason}"] += 1
    return tuple(regions), dropped


def parse_region(item: Any, language: str, size: tuple[float, float] | None) -> Region:
    if not isinstance(item, dict):
        raise BrokenExample("not an object")
    box = parse_box(item.get("bbox"))
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
    return Region(box if size is None else fit_box(box, *size), texts, int(n_boxes))


def parse_box(value: Any) -> Box:
    if not isinstance(value, list) or len(value) != 4 or not all(is_number(edge) for edge in value):
        raise BrokenExample("bbox is not four finite numbers")
    left, top, right, bottom = (float(edge) for edge in value)
    if not (left < right and top < bottom):
        raise BrokenExample("box of no area")
    return left, top, right, bottom


def fit_box(box: Sequence[float], width: float, height: float) -> Box:
    """The box cut to an image of width x height pixels, which it may leave by a pixel or by 1 % of the side.

    That much is rounding; a box further out belongs to another image or unit. Raises BrokenExample for those.
    """
    left, top, right, bottom = box
    beside, above = max(1.0, width / 100), max(1.0, height / 100)
    inside = left >= -beside and top >= -above and right <= width + beside and bottom <= height + above
    left, top, right, bottom = max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height)
    if not (inside and left < right and top < bottom):
        raise BrokenExample("box outside the image")
    return left, top, right, bottom


def parse_list(row: dict[str, Any], column: str) -> list[Any]:
    value = row.get(column)
    if value is not None and not isinstance(value, list):
        raise BrokenExample(f"{column} is not a list")
    return value or []


def parse_texts(row: dict[str, Any], column: str) -> list[str]:
    texts = parse_list(row, column)
    if not all(isinstance(text, str) for text in texts):
        raise BrokenExample(f"{column} is not a list of strings")
    return [checked_text(text) for text in texts]


def checked_text(text: str) -> str:
    """The text without blanks around it. JSON can spell half a character ("\\ud800"), which no file or model takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BrokenExample("text is not Unicode") from None
    return text.strip()


def is_number(value: Any) -> bool:
    """Is it a finite number a float can hold? JSON in Python knows NaN, Infinity and 400-digit integers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def is_shallow(value: Any, depth: int) -> bool:
    """Is it nested at most `depth` deep?"""
    if isinstance(value, dict):
        value = list(value.values())
    return not isinstance(value, list) or (depth > 0 and all(is_shallow(item, depth - 1) for item in value))
