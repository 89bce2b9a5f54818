"""Reading `scenes:drawings=200,objects=5,...`: what the embedded data is asked to show."""

from collections.abc import Sequence
from dataclasses import dataclass

from opensiglip.data.scenes.drawings import LANGUAGES, drawings
from opensiglip.errors import UserError


@dataclass(frozen=True)
class ScenesSpec:
    """The keys of a scenes spec and their defaults."""

    drawings: int = 200  # how many drawings training scenes are made of
    objects: int = 5  # a scene shows 1 to this many
    languages: tuple[str, ...] = ("en",)
    count: int = 200_000  # training scenes in an epoch
    seed: int = 0
    pixels: int | None = None  # side of the image; None: the caller's
    words: int = 0  # up to this many words are written beside the drawings
    exchanged: float = 0.0  # share of training scenes that have the caption of another scene


PIXELS = (16, 1024)  # the least and the most pixels a side
_LIMITS = {"objects": (1, 9), "count": (1, 2**31 - 1), "seed": (0, 2**32 - 1), "pixels": PIXELS, "words": (0, 9)}
_KEYS = ("drawings", "objects", "languages", "count", "seed", "pixels", "words", "exchanged")


def parse_spec(spec: str) -> ScenesSpec:
    """`scenes` or `scenes:key=value,...`; languages are `all`, or codes joined by `|` or `+`.

    Raises UserError on an unknown or repeated key and on a value out of range.
    """
    kind, colon, rest = spec.partition(":")
    if kind != "scenes" or (colon and not rest):
        raise UserError(f"data {spec!r}: write `scenes` or `scenes:key=value,...` with keys {', '.join(_KEYS)}.")
    values: dict[str, float | tuple[str, ...]] = {}
    for item in rest.split(",") if rest else ():
        key, equals, value = (part.strip() for part in item.partition("="))
        if key not in _KEYS or not equals:
            raise UserError(f"data {spec!r}: {item.strip()!r} is not key=value with a key among {', '.join(_KEYS)}.")
        if key in values:
            raise UserError(f"data {spec!r}: key {key!r} is given twice; keep one.")
        if key == "languages":
            values[key] = resolve_languages(value.replace("|", "+").split("+"))
        else:
            values[key] = _share(spec, key, value) if key == "exchanged" else _number(spec, key, value)
    parsed = ScenesSpec(**values)  # type: ignore[arg-type]
    if parsed.drawings < parsed.objects:
        raise UserError(f"data {spec!r}: drawings must be at least objects, which is {parsed.objects}.")
    return parsed


def resolve_languages(codes: Sequence[str]) -> tuple[str, ...]:
    """The languages that `codes` name, each once, in the order given; `all` is all 14. Raises UserError."""
    if "all" in codes:
        return LANGUAGES
    for code in codes:
        if code not in LANGUAGES:
            raise UserError(
                f"languages: scenes have no language {code!r}; choose among {', '.join(LANGUAGES)}, or all."
            )
    if not codes:
        raise UserError(f"languages: name at least one of {', '.join(LANGUAGES)}, or all.")
    return tuple(dict.fromkeys(codes))


def _share(spec: str, key: str, value: str) -> float:
    try:
        share = float(value)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UserError(f"data {spec!r}: {key}={value} is not a number from 0 to 1.")
    return share


def _number(spec: str, key: str, value: str) -> int:
    low, high = (1, len(drawings()[0])) if key == "drawings" else _LIMITS[key]
    digits = value.replace("_", "")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 12 and low <= int(digits) <= high):
        raise UserError(f"data {spec!r}: {key}={value} is not a whole number from {low} to {high}.")
    return int(digits)
