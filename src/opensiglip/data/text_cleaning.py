"""What is done to a text before it is split into tokens, by name."""

import string

from tokenizers import Regex, normalizers

# Of the tokenizers library, not Python's own: `str.lower` ends a Greek word otherwise. Applying them twice is once.
ONE_SPACE, LOWER = normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()
PUNCTUATION = Regex("[" + "".join("\\" + mark for mark in string.punctuation) + "]")
# What is done to a text beside lower-casing. Canonical is big_vision's canonicalize_text, of
# evaluators/proj/image_text/prompt_engineering.py.
CLEANING: dict[str, list[normalizers.Normalizer]] = {
    "nothing": [],
    "spaces": [ONE_SPACE],
    "canonical": [
        normalizers.Replace("_", " "),
        normalizers.Replace(PUNCTUATION, ""),
        ONE_SPACE,
        normalizers.Strip(),
    ],
}
CLEANERS = {
    (kind, lower): normalizers.Sequence([LOWER, *steps] if lower else steps)
    for kind, steps in CLEANING.items()
    for lower in (False, True)
}


def cleaned(text: str, kind: str, *, lower: bool) -> str:
    """The text lower-cased, and cleaned as `CLEANING` says."""
    return CLEANERS[kind, lower].normalize_str(text)
