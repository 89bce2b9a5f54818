"""Shares of languages: `--languages en:0.9,de:0.1`, or by size: `--language-weights temperature:0.5`."""

from collections.abc import Sequence

from opensiglip.data.example import Source
from opensiglip.data.sources.values import resolve_codes, speaks
from opensiglip.errors import UserError


def parse_languages(text: str | None) -> tuple[list[str] | None, dict[str, float]]:
    """The languages of `--languages`, None for all of a source, and the weight of each where they have any.

    Raises UserError where only some have one, or one is not above 0.
    """
    if text is None:
        return None, {}
    parts = [part.partition(":") for part in text.split(",")]
    codes = [code for code, _, _ in parts]
    if not any(colon for _, colon, _ in parts):
        return codes, {}
    weights = dict(zip(resolve_codes(codes) or (), [number(text) for _, _, text in parts], strict=False))
    if len(weights) < len(codes) or not all(0 < weight < 1e9 for weight in weights.values()):
        raise UserError(
            f"--languages {text}: give each language once, with a weight above 0, such as en:0.9,de:0.1; or give "
            "none a weight."
        )
    return list(weights), weights


def parse_rule(rule: str | None, languages: str | None = None) -> float | None:
    """The power A of `--language-weights temperature:A`, None without it. Raises UserError."""
    if rule is None:
        return None
    name, _, power = rule.partition(":")
    if name != "temperature" or not 0 <= number(power, -1.0) <= 1:
        raise UserError(f"--language-weights {rule!r} is not temperature:A with A from 0 to 1.")
    if parse_languages(languages)[1]:
        raise UserError(f"--language-weights {rule} and --languages {languages} both set shares; give one of them.")
    return number(power)


def weigh_by_size(sources: Sequence[Source], power: float) -> None:
    """Give each language of each source the weight n^power, of the n captions that all sources have in it.

    Raises UserError where a source does not say how many it has.
    """
    counts: dict[str, float] = dict.fromkeys((code for source in sources for code in source.languages), 0.0)
    for source in sources:
        told = source.describe().get("captions")
        if not told or not set(source.languages) <= set(told):
            raise UserError(
                f"--language-weights: {source.name} does not say how many captions each language has; give their "
                "shares, such as --languages en:0.9,de:0.1."
            )
        for code in source.languages:
            counts[code] += told[code]
    for source in sources:
        if source.languages:
            source.language_weights = tuple(max(1.0, counts[code]) ** power for code in source.languages)


def number(text: str, otherwise: float = 0.0) -> float:
    """The number that a text is, and what it is taken for where it is none."""
    try:
        return float(text)
    except ValueError:
        return otherwise


def weigh_languages(sources: Sequence[Source], weights: dict[str, float]) -> None:
    """Give each source the weights of the languages that it has, where any are given; "zh" is asked for "zh-CN" too."""
    for source in sources if weights else ():
        asked = [max((one for one in weights if speaks(code, [one])), key=len) for code in source.languages]
        source.language_weights = tuple(weights[one] / asked.count(one) for one in asked)
