"""CIDEr-D and BLEU-4 are pycocoevalcap's."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opensiglip.evaluation.metrics.text import bleu4, bleu_counts, cider_d, words

CASES = json.loads((Path(__file__).parent / "goldens/coco_scores.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{len(case['answers'])} images")
def test_scores_are_pycocoevalcaps_to_nine_places(case: dict[str, Any]) -> None:
    each = cider_d(case["answers"], case["references"])
    np.testing.assert_allclose(each, case["each_cider_d"], rtol=0, atol=1e-9)
    assert abs(np.mean(each) - case["cider_d"]) < 1e-9
    counts = np.sum([bleu_counts(*pair) for pair in zip(case["answers"], case["references"], strict=True)], 0)
    assert abs(bleu4(counts) - case["bleu4"]) < 1e-9


def test_the_goldens_have_something_to_compare() -> None:
    assert sum(0.05 < case["bleu4"] < 0.95 for case in CASES) > 1
    assert len({round(score, 6) for case in CASES for score in case["each_cider_d"]}) > 30


def test_a_perfect_answer_scores_best() -> None:
    texts = [words("a red fox left of the box"), words("two dogs under an apple tree"), words("a green ball and a cat")]
    assert cider_d(texts, [[text] for text in texts]) == pytest.approx([10.0] * 3)
    assert bleu4(np.sum([bleu_counts(text, [text]) for text in texts], 0)) == pytest.approx(1.0)
    assert max(cider_d(texts, [[text] for text in texts[1:] + texts[:1]])) < 1.0


@given(st.lists(st.sampled_from("abc"), max_size=6), st.lists(st.sampled_from("abc"), min_size=1, max_size=6))
def test_scores_are_finite_and_in_range(answer: list[str], reference: list[str]) -> None:
    (score,) = cider_d([answer], [[reference]])
    assert 0 <= score <= 10 and 0 <= bleu4(np.array(bleu_counts(answer, [reference]))) <= 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A red-hot  Fox, (two)!", "a red hot fox two"),
        ("赤いリンゴ、2つ", "赤 い リ ン ゴ 2 つ"),
        ("der Größte Fuchs", "der größte fuchs"),
        ("می\u200cشود", "می\u200cشود"),
    ],
)
def test_words(text: str, expected: str) -> None:
    assert words(text) == expected.split(" ")
