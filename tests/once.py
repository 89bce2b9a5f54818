"""What hundreds of toy runs would do alike is done once in a process: training a tokenizer, drawing a curve.

Either costs as much as the six steps of such a run. Tests of the two take TRAIN and the fixture `every_curve`.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from opensiglip.data import tokenizers
from opensiglip.reports import run_page

TRAIN, CURVE = tokenizers.train, run_page.curve


@contextmanager
def once() -> Iterator[None]:
    """Inside, tokenizers of the same texts are copies of one; all curves of run reports are the first."""
    trained, drawn = dict[Any, PreTrainedTokenizerFast](), dict[tuple[str, ...], str]()

    def train(texts: Iterable[str], **settings: Any) -> PreTrainedTokenizerFast:
        read = tuple(texts)
        key = (read, *sorted(settings.items()))
        if key not in trained:
            trained[key] = TRAIN(read, **settings)
        return deepcopy(trained[key])

    def curve(rows: Sequence[dict[str, Any]], name: str, **how: Any) -> str:
        if not [float(row[name]) for row in rows if row.get(name) is not None]:
            return ""
        if (key := tuple(how)) not in drawn:
            drawn[key] = CURVE(rows, name, **how)
        return drawn[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizers, "train", train)
        patch.setattr(run_page, "curve", curve)
        yield
