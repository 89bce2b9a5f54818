"""transformers keeps quiet about its own defaults where a model is written and read, from Python too."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import SiglipTextConfig
from transformers.utils import logging as library

from opensiglip.data.text import TextPipeline
from opensiglip.models.model import Model
from opensiglip.models.quiet_library import no_bars


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What transformers warns of, as in a fresh process."""
    heard: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    listener, level = Listener(), library.get_verbosity()
    logging.Logger.warning_once.cache_clear()  # type: ignore[attr-defined]
    library.set_verbosity_warning()
    logging.getLogger("transformers").addHandler(listener)
    yield heard
    logging.getLogger("transformers").removeHandler(listener)
    library.set_verbosity(level)


def test_a_model_is_written_and_read_without_a_word(
    small: Any, pipeline: TextPipeline, tmp_path: Path, said: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    library.enable_progress_bar()  # as outside of the command line
    Model.new(small("siglip2").architecture, len(pipeline)).save_pretrained(tmp_path)
    Model.from_pretrained(tmp_path)
    assert said == []
    assert capfd.readouterr() == ("", "")


def test_ids_that_do_not_fit_a_models_own_vocabulary_are_still_told(said: list[str]) -> None:
    SiglipTextConfig(vocab_size=100, bos_token_id=49406, eos_token_id=1)
    assert len(said) == 1 and "bos_token_id must be" in said[0]


def test_bars_come_back_where_they_were() -> None:
    library.enable_progress_bar()
    with no_bars():
        assert not library.is_progress_bar_enabled()
    assert library.is_progress_bar_enabled()
    library.disable_progress_bar()
    with no_bars():
        pass
    assert not library.is_progress_bar_enabled()
