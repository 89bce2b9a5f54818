"""`--languages en:0.9,de:0.1`: visits ask for languages by weight, and without weights as they always did."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from opensiglip.data.example import Source
from opensiglip.data.fields.frame import Frame
from opensiglip.data.loader import DataPlan, Steps, draw_language
from opensiglip.data.sources.registry import open_source
from opensiglip.data.sources.subset import Subset
from opensiglip.data.weighting.languages import parse_languages, weigh_languages
from opensiglip.errors import UserError
from opensiglip.training.startup import language_lines


def scenes(weights: str | None) -> Source:
    codes, shares = parse_languages(weights)
    source = open_source("scenes:count=40", languages=codes, pixels=16)
    weigh_languages([source], shares)
    return source


def asked(source: Source, positions: int = 300) -> Counter[str]:
    """The languages of the captions that so many positions of the stream draw."""
    facts: dict[str, Any] = {"frame": Frame(8), "fields": [], "pipeline": None, "batch_size": 4, "seed": 0}
    steps, found = Steps(DataPlan(sources=[source], **facts)), Counter[str]()
    for position in range(positions):
        caption = steps.visit(position, Counter(), Frame(8)).caption
        assert caption is not None
        found[caption.language] += 1
    return found


def test_visits_ask_for_languages_by_weight() -> None:
    found = asked(scenes("en:8,de:1,fr:1"))
    assert set(found) == {"en", "de", "fr"}
    assert found["en"] / 300 == pytest.approx(0.8, abs=0.07) and found["de"] / 300 == pytest.approx(0.1, abs=0.05)


def test_without_weights_a_visit_draws_what_it_always_did() -> None:
    source = scenes("en,de,fr")
    assert source.language_weights is None
    for seed in range(20):
        expected = source.languages[np.random.default_rng(seed).integers(3)]
        assert draw_language(source, np.random.default_rng(seed)) == expected


def test_what_is_set_aside_keeps_them_and_the_start_up_lines_say_the_shares() -> None:
    source = scenes("de:1,en:3")
    assert Subset(source, [0, 1]).language_weights == source.language_weights
    (line,) = language_lines([source, scenes(None)])
    assert "en 75.0%" in line and "de 25.0%" in line


def test_a_language_is_asked_for_in_all_its_regions() -> None:
    source: Any = SimpleNamespace(languages=("zh-CN", "zh-TW", "en", "pt-BR"))
    weigh_languages([source], parse_languages("ZH:2,en:1,pt:1,pt-br:5")[1])
    assert source.language_weights == (1, 1, 1, 5)


@pytest.mark.parametrize("text", ["en:0.9,de", "en:0,de:1", "en:-1", "en:x", "en:1,EN:2", "all:1", "en:nan", "en:inf"])
def test_weights_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--languages .*: give each language once, with a weight above 0"):
        parse_languages(text)
