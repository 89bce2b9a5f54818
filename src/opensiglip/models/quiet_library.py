"""transformers' own defaults and bars, kept out of what a run, a load or an export says."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as library

# To find the values that differ from the defaults, transformers makes a default SiglipTextConfig, whose ids are CLIP's
# and do not fit its own vocabulary. The warning is of that default, never of a model's config.
OWN_DEFAULT = re.compile(r"(bos|eos)_token_id must be .*between 0 and 31999\), got 4940[67]\.")


def _is_ours(record: logging.LogRecord) -> bool:
    return OWN_DEFAULT.search(record.getMessage()) is None


logging.getLogger("transformers.configuration_utils").addFilter(_is_ours)


@contextmanager
def no_bars() -> Iterator[None]:
    """Weights are read and written without transformers' bars, which come back if they were there."""
    if not library.is_progress_bar_enabled():
        yield
        return
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.enable_progress_bar()
