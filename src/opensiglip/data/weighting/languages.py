"""Shares of languages: `--languages en:0.9,de:0.1`."""

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


def number(text: str) -> float:
    """The number that a text is; 0 where it is none."""
    try:
        return float(text)
    except ValueError:
        return 0.0


def weigh_languages(sources: Sequence[Source], weights: dict[str, float]) -> None:
    """Give each source the weights of the languages that it has, where any are given; "zh" is asked for "zh-CN" too."""
    for source in sources if weights else ():
        asked = [max((one for one in weights if speaks(code, [one])), key=len) for code in source.languages]
        source.language_weights = tuple(weights[one] / asked.count(one) for one in asked)
