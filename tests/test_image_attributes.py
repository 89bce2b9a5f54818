"""`data balance --attributes-by MODEL`: what images show, by a model whose embeddings are made by hand."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from toys import COLOURS, Rectangles, rectangle

from opensiglip.apps import weights
from opensiglip.apps.cli import main
from opensiglip.data.example import BrokenExample, Caption, Example
from opensiglip.data.sources.python import spec_of
from opensiglip.data.sources.registry import open_source
from opensiglip.data.weighting.file import read_weights
from opensiglip.data.weighting.lexicon import Lexicon
from opensiglip.errors import UserError
from opensiglip.evaluation.image_attributes import read_by_model

LISTS: Any = {"colour": {"warm": {"en": ["red", "reds"]}, "cold": {"en": ["blue"]}, "leafy": {"en": ["green"]}}}

SAID = (Caption("green or blue"),)  # which nobody asks


@dataclass
class ByColour:
    """Embeds an image by its colours, and a text by the colours in it; other texts are like white."""

    has_text: bool = True
    logit_scale: float = 3.0
    name: str = "by-colour"

    def encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        rows = [[float(colour in text.split()) for colour in ("red", "green", "blue")] for text in texts]
        return F.normalize(torch.tensor([row if any(row) else [1.0, 1.0, 1.0] for row in rows]), dim=-1)

    def framed(self, images: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return list(images)

    def embed_framed(self, images: Sequence[torch.Tensor]) -> torch.Tensor:
        return F.normalize(torch.stack([image.float().mean((1, 2)) for image in images]), dim=-1)


def test_a_row_shows_the_value_that_its_image_is_like_and_none_where_the_model_is_unsure() -> None:
    source = Rectangles(130, broken=frozenset({3}))
    shown = read_by_model(source, ["colour"], Lexicon(LISTS), ByColour(), 0.9)  # type: ignore[arg-type]
    values = {"red": "warm", "green": "leafy", "blue": "cold"}
    for row in range(130):
        colour = list(COLOURS)[row % 4]  # white ones are as like to "thing" as can be
        expected = {("colour", values[colour])} if colour in values and row != 3 else set()
        assert shown.patterns[shown.rows[row]] == expected, f"row {row}, {colour}"
    assert shown.broken == Counter({"truncated image": 1})
    mixed = rectangle((0, 0, 24, 40), 40, 40, "red") + rectangle((24, 0, 40, 40), 40, 40, "blue")
    unsure = open_source(spec_of({"train": [Example(one, SAID) for one in (mixed, rectangle((0, 0, 9, 9), 40, 40))]}))
    assert [list(p) for p in rows_of(unsure, 0.9)] == [[], [("colour", "warm")]], "three parts red, two blue is unknown"
    assert [list(p) for p in rows_of(unsure, 0.3)] == [[("colour", "warm")]] * 2


def rows_of(source: Any, confidence: float) -> list[Any]:
    shown = read_by_model(source, ["colour"], Lexicon(LISTS), ByColour(), confidence)  # type: ignore[arg-type]
    return [shown.patterns[number] for number in shown.rows]


def test_a_column_says_it_before_the_model_and_captions_say_nothing() -> None:
    red = rectangle((0, 0, 9, 9), 40, 40)
    rows = [
        Example(red, (Caption("all blue"),)),
        Example(red, SAID, extras={"groups": {"colour": "leafy"}}),
    ]
    found = rows_of(open_source(spec_of({"train": rows})), 0.9)
    assert [sorted(value for _, value in pattern) for pattern in found] == [["warm"], ["leafy"]]


def test_the_command_balances_what_images_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("scipy.optimize")
    colours = ["red"] * 30 + ["blue"] * 10 + ["green"] * 20
    rows = [Example(rectangle((0, 0, 9, 9), 40, 40, one), SAID) for one in colours]
    spec = spec_of({"train": rows, "val": rows[:1]})
    lists, out = tmp_path / "lists.json", tmp_path / "weights.parquet"
    lists.write_text(json.dumps(LISTS))
    monkeypatch.setattr(weights, "load", lambda name: ByColour(name=name))
    words = ["data", "balance", spec, "--sensitive", "colour", "--lexicon", str(lists), "--out", str(out)]
    assert main([*words, "--attributes-by", "mine"]) == 0
    found = torch.tensor(read_weights(out, open_source(spec)))
    sums = [float(found[[one == colour for one in colours]].sum() / 60) for colour in ("red", "blue", "green")]
    assert sums == pytest.approx([1 / 3] * 3, abs=0.011)
    assert "60 of 60 rows show colour" in capsys.readouterr().out
    assert main([*words, "--attributes-by", "mine", "--confidence", "1.5"]) == 2
    assert "--confidence 1.5 is out of range" in capsys.readouterr().err


def test_what_can_not_be_classified_is_refused_in_a_sentence() -> None:
    source, some = Rectangles(4), Lexicon(LISTS)
    with pytest.raises(UserError, match="--attributes-by by-colour has no text tower"):
        read_by_model(source, ["colour"], some, ByColour(has_text=False), 0.9)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no list of two values of 'age' with English words; there are lists of colour"):
        read_by_model(source, ["age"], some, ByColour(), 0.9)  # type: ignore[arg-type]
    with pytest.raises(
        UserError, match="no row of rectangles shows 'colour': the column `groups` has no such entry, and no image is"
    ):
        read_by_model(source, ["colour"], some, ByColour(logit_scale=-9.0), 0.9)  # type: ignore[arg-type]


def test_broken_rows_of_a_batch_shift_no_other() -> None:
    class Odd(Rectangles):
        def example(self, index: int, language: str | None = None) -> Example:
            if index % 2:
                raise BrokenExample("odd")
            return super().example(index, language)

    shown = read_by_model(Odd(9), ["colour"], Lexicon(LISTS), ByColour(), 0.9)  # type: ignore[arg-type]
    assert [bool(shown.patterns[number]) for number in shown.rows] == [at % 4 in (0, 2) for at in range(9)]
