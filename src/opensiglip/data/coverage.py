"""How well a tokenizer serves a language: how many tokens its texts take, and how often letters fall apart."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import islice

from opensiglip.data.stats.histogram import Histogram
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError

MOST = 20_000  # texts of a language that are counted
BROKEN = "\ufffd"  # what a piece of a letter decodes to


@dataclass(frozen=True)
class Coverage:
    """Of the texts of one language."""

    texts: int
    covered: float  # share of the tokens that hold whole letters
    letters_per_token: float
    tokens_per_word: float  # words are what blanks part
    median: float  # tokens of a text, with its end
    p95: float
    longest: float
    over_length: float  # share of the texts that the text tower does not read to their end


def cover(pipeline: TextPipeline, texts: Iterable[str]) -> Coverage:
    """The figures of the first 20,000 texts. Raises UserError where there is none."""

    @cache
    def whole(token: int) -> bool:
        return BROKEN not in pipeline.text([token])

    lengths, tokens, covered, letters, words = Histogram(), 0, 0, 0, 0
    for text in islice(texts, MOST):
        ids = pipeline.ids(text)
        lengths.add(len(ids) + 1)
        tokens += len(ids)
        covered += sum(map(whole, ids))
        letters += len(text)
        words += len(text.split())
    if not tokens:
        raise UserError("the source has no text in one of its languages; name others with --languages.")
    return Coverage(
        len(lengths),
        covered / tokens,
        letters / tokens,
        tokens / max(words, 1),
        lengths.quantile(0.5),
        lengths.quantile(0.95),
        lengths.high,
        lengths.above(pipeline.policy.length) / len(lengths),
    )


def table(found: dict[str, Coverage], length: int) -> str:
    """A line a language."""
    heads = ["language", "texts", "whole letters", "letters/token", "tokens/word", "median", "95 %", "longest"]
    rows = [
        [
            code,
            f"{one.texts:,}",
            f"{100 * one.covered:.1f} %",
            f"{one.letters_per_token:.2f}",
            f"{one.tokens_per_word:.2f}",
            *(f"{value:g}" for value in (one.median, one.p95, one.longest)),
            f"{100 * one.over_length:.2f} %",
        ]
        for code, one in found.items()
    ]
    lines = [[*heads, f"over {length}"], *rows]
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
