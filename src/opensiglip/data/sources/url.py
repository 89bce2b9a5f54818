"""URLs of shards: which are read, and what of them may be written down."""

import re
from collections.abc import Collection
from urllib.parse import urlsplit

from opensiglip.errors import UserError

SCHEME = re.compile(r"(s3|gs|gcs|abfss?|az|hf|https?)://", re.IGNORECASE)


def is_remote(text: str) -> bool:
    """Is it a URL of a scheme that is read?"""
    return SCHEME.match(text) is not None


def plain(url: str) -> str:
    """A URL without what may be secret: what stands before an @, and what follows a "?"."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def check_no_credentials(spec: str, known: Collection[str]) -> None:
    """Refuse what a run's config.json must not hold; `known`: options of a spec. Raises UserError."""
    at = SCHEME.search(spec)
    if at is None:
        return
    url = spec[at.start() :]
    netloc, _, query = url[len(at[0]) :].partition("/")[0], *url.partition("?")[1:]
    keys = [pair.partition("=")[0] for pair in query.split("&") if pair]
    if "@" in netloc or any(key not in known for key in keys):
        raise UserError(
            f"--data {spec[: at.start()]}{plain(url)}: a password or a signature has no place in a run's record; give "
            "credentials by the environment, or write signed URLs to a file: tar:LIST.txt."
        )
