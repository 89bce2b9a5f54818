"""Word lists that say which values of an attribute a caption names: {attribute: {value: {language: [words]}}}."""

import json
import re
import unicodedata
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

from opensiglip.data.example import Caption
from opensiglip.errors import UserError, first_line
from opensiglip.json_file import load_json

MOST_BYTES = 16 << 20  # of a file of lists
Value = tuple[str, str]  # attribute, value


class Lexicon:
    """Words and phrases of several words, by language. Words are compared without case, as `words` splits a text."""

    def __init__(self, lists: dict[str, dict[str, dict[str, list[str]]]]) -> None:
        self.lists, self.attributes = lists, tuple(lists)
        self.entries: dict[str, dict[tuple[str, ...], set[Value]]] = {}
        for attribute, values in lists.items():
            for value, languages in values.items():
                for language, texts in languages.items():
                    for text in texts:
                        own = self.entries.setdefault(language, {})
                        own.setdefault(words(text), set()).add((attribute, value))
        self.longest = {language: max(map(len, own)) for language, own in self.entries.items()}

    @classmethod
    def load(cls, file: Path | None = None) -> "Lexicon":
        """The lists of a file; by default those that ship, `lexicon.json`. Raises UserError."""
        if file is None:
            return cls(json.loads(files(__package__).joinpath("lexicon.json").read_text(encoding="utf-8")))
        try:
            lists = load_json(file, MOST_BYTES)
            check_lists(lists)
        except (OSError, ValueError) as error:
            raise UserError(
                f"--lexicon {file} is not JSON of the form {{attribute: {{value: {{language: [words]}}}}}} "
                f"({first_line(error)})."
            ) from error
        return cls(lists)

    def named(self, captions: Iterable[Caption]) -> set[Value]:
        """The values that captions name, each by the lists of its own language."""
        found: set[Value] = set()
        for caption in captions:
            entries = self.entries.get(caption.language)
            if entries is None:
                continue
            said = words(caption.text)
            for size in range(1, self.longest[caption.language] + 1):
                for at in range(len(said) - size + 1):
                    found |= entries.get(said[at : at + size], set())
        return found


def words(text: str) -> tuple[str, ...]:
    """The words of a text, letters and digits, without case: "l'homme" is two, "Ärztin" one."""
    return tuple(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


def check_lists(lists: Any) -> None:
    """Raises ValueError that names what is not as `Lexicon` takes it."""
    if not isinstance(lists, dict) or not lists:
        raise ValueError("it holds no attributes")
    for attribute, values in lists.items():
        if not isinstance(values, dict) or not values:
            raise ValueError(f"{attribute!r} holds no values")
        for value, languages in values.items():
            if not isinstance(languages, dict) or not all(isinstance(texts, list) for texts in languages.values()):
                raise ValueError(f"{value!r} of {attribute!r} holds no lists by language")
            for text in (text for texts in languages.values() for text in texts):
                if not isinstance(text, str) or not words(text):
                    raise ValueError(f"{text!r} of {value!r} is no word")
