"""Values that JSON may hold, checked one by one: everything in a data file is somebody else's."""

import math
import re
from collections.abc import Sequence
from typing import Any

from opensiglip.data.example import BrokenExample
from opensiglip.errors import UserError

MAX_DEPTH = 16  # of what stands inside an optional column: deeper is an attack on the stack, not an annotation
MAX_COUNT = 1_000_000  # of an image's pixels along a side, of a phrase's boxes
MAX_TEXT = 20_000  # letters of one text; a tokenizer takes seconds for millions, and no model reads on after hundreds
LANGUAGE = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{1,8}){0,3}")


def parse_language(value: Any) -> str:
    """A language code in its canonical spelling: "DE" is "de", "pt_br" is "pt-BR", "zh-hans" is "zh-Hans".

    (RFC 5646, Sec. 2.1.1: the language in small letters, a region in capitals, a script with one.)
    """
    if not isinstance(value, str) or not LANGUAGE.fullmatch(value.strip()):
        raise BrokenExample("lang is not a language code")
    language, *rest = value.strip().replace("_", "-").split("-")
    return "-".join([language.lower(), *map(_subtag, rest)])


def _subtag(part: str) -> str:
    return part.upper() if len(part) == 2 else part.title() if len(part) == 4 and part.isalpha() else part.lower()


def resolve_codes(codes: Sequence[str] | None) -> list[str] | None:
    """Languages as a user writes them, in their canonical spelling, each once; None for all. Raises UserError."""
    if codes is None or "all" in [code.strip() for code in codes]:
        return None
    try:
        return list(dict.fromkeys(map(parse_language, codes)))
    except BrokenExample:
        wrong = next(code for code in codes if not LANGUAGE.fullmatch(code.strip()))
        raise UserError(
            f"--languages: {wrong!r} is not a language code such as en or zh-CN; give such, or all."
        ) from None


def speaks(code: str, languages: Sequence[str]) -> bool:
    """Is a text in language `code` one in these languages? "zh-CN" is a "zh"; "zh" is no "zh-CN"."""
    return any(code == language or code.startswith(f"{language}-") for language in languages)


def checked_text(text: str) -> str:
    """The text without blanks around it. JSON can spell half a character ("\\ud800"), which no file or model takes."""
    if len(text) > MAX_TEXT:
        raise BrokenExample(f"text over {MAX_TEXT:,} letters")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BrokenExample("text is not Unicode") from None
    return text.strip()


def negative_captions(value: Any) -> list[str]:
    """`negative_caption`, one text or a list of them, as texts that say something, each once. Raises BrokenExample."""
    given = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in given):
        raise BrokenExample("negative_caption is neither a string nor a list of strings")
    return list(dict.fromkeys(text for text in map(checked_text, given) if text))


def is_number(value: Any) -> bool:
    """Is it a finite number a float can hold? JSON in Python knows NaN, Infinity and 400-digit integers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def check_nested(value: Any, depth: int = MAX_DEPTH) -> None:
    """Check what stands in an optional column: not nested too deep, its texts Unicode and of a bounded length."""
    if isinstance(value, str):
        checked_text(value)
    elif isinstance(value, dict | list):
        if depth == 0:
            raise BrokenExample(f"columns nested over {MAX_DEPTH} deep")
        for item in (*value, *value.values()) if isinstance(value, dict) else value:
            check_nested(item, depth - 1)


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
