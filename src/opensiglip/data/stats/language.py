"""The language of a text, guessed by py3langid (97 languages, 4.5 MB, BSD), of the extra `languages`."""

from functools import cache
from typing import Any

from opensiglip.errors import UserError

SHORTEST = 12  # letters: of fewer no guess is worth anything


def detect(text: str) -> str | None:
    """The code of a text's language; None for one too short to tell. Raises UserError without the library."""
    return str(_library().classify(text)[0]) if len(text) >= SHORTEST else None


@cache
def _library() -> Any:
    try:
        import py3langid
    except ImportError:
        raise UserError("--detect-languages needs py3langid; pip install 'opensiglip[languages]'.") from None
    return py3langid
