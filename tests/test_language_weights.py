"""`--languages en:0.9,de:0.1`: visits ask for languages by weight, and without weights as they always did."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import Run
from PIL import Image

from opensiglip.data.example import Source
from opensiglip.data.fields.frame import Frame
from opensiglip.data.loader import DataPlan, Steps, draw_language
from opensiglip.data.sources.registry import open_source
from opensiglip.data.sources.subset import Subset
from opensiglip.data.weighting.languages import parse_languages, parse_rule, weigh_by_size, weigh_languages
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


def test_a_temperature_asks_for_languages_by_the_root_of_what_all_sources_have() -> None:
    def counted(**captions: int) -> Any:
        return SimpleNamespace(name="x", languages=tuple(captions), describe=lambda: {"captions": captions})

    sources = [counted(en=700, de=100), counted(en=200, fr=0)]
    weigh_by_size(sources, 0.5)
    assert sources[0].language_weights == (30, 10) and sources[1].language_weights == (30, 1)
    weigh_by_size(sources, 0.0)
    assert sources[0].language_weights == (1, 1)
    with pytest.raises(UserError, match="x does not say how many captions each language has"):
        weigh_by_size([SimpleNamespace(name="x", languages=("en",), describe=dict)], 0.5)  # type: ignore[list-item]


def test_a_run_asks_for_languages_by_its_temperature(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten of twelve captions are English: 10 to the power of 0.5 is 3.16, 2 to that power 1.41."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    captions = [{"lang": "de" if place < 2 else "en", "text": f"{place}"} for place in range(12)]
    row = {"file_name": "a.png", "captions_i18n": captions, "split": "train"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    given: dict[str, Any] = {"data": [str(tmp_path)], "steps": 1, "held_out": 0, "batch_size": 2}
    run(tmp_path / "run", language_weights="temperature:0.5", **given)
    assert "en 69.1%, de 30.9%" in capsys.readouterr().out


@pytest.mark.parametrize(
    "rule", ["size", "temperature", "temperature:2", "temperature:-0.1", "temperature:x", "power:1"]
)
def test_rules_that_are_none_are_refused(rule: str) -> None:
    with pytest.raises(UserError, match="is not temperature:A with A from 0 to 1"):
        parse_rule(rule)
    with pytest.raises(UserError, match="both set shares"):
        parse_rule("temperature:1", "en:1,de:2")
    assert parse_rule("temperature:0.5", "en,de") == 0.5 and parse_rule(None) is None
