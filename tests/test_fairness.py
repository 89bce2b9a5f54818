"""Fairness on models whose answers are known."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_evaluate import INKS, encoded, oracle, square

from opensiglip.data.example import Example
from opensiglip.evaluation.benchmark import Context, NotApplicable
from opensiglip.evaluation.benchmarks.fairness import GENDERS, fairness, groups_of


def reader(man: str, woman: str) -> Any:
    """Colour words as the oracle reads them; the two gender prompts as colours."""
    plain = oracle().text
    assert plain is not None
    return lambda texts: plain([{GENDERS[0]: man, GENDERS[1]: woman}.get(text, text) for text in texts])


def told(color: str, **extras: Any) -> Example:
    return square(color, 0, extras)


def test_bias_is_how_far_the_share_of_images_is_from_half() -> None:
    examples = [told("red")] * 8 + [told("green")] * 2
    for man, woman, share, bias in (("red", "green", 0.8, 0.3), ("green", "red", 0.2, 0.3), ("blue", "blue", 0.5, 0.0)):
        subject = oracle(text=reader(man, woman))
        found = fairness(subject, encoded(subject, examples), Context()).metrics
        assert found["nearer_to_man"] == pytest.approx(share) and found["representation_bias"] == pytest.approx(bias)
        low, high = found["representation_bias_ci95"]
        assert low <= bias <= high and found["images"] == 10
    note = fairness(subject, encoded(subject, examples), Context()).notes
    assert note == ["no example has both columns `label` and `groups`, so there is no disparity"]


def test_disparity_is_the_best_group_less_the_worst_and_each_group_is_told() -> None:
    """Squares of one region are labelled as they look; of those of the other every second one is not."""
    right = [told(color, groups={"region": "north", "income": i % 2}) for i, color in enumerate([*INKS] * 10)]
    wrong = [replace(one, extras=one.extras | {"label": "red", "groups": {"region": "south"}}) for one in right]
    subject = oracle()
    result = fairness(subject, encoded(subject, [*right, *wrong]), Context())
    region = result.metrics["by_attribute"]["region"]
    assert (region["best"], region["worst"]) == ("north", "south")
    each = region["groups"]
    assert each["north"]["accuracy"] == 1 and each["south"]["accuracy"] == pytest.approx(1 / 3)
    assert region["disparity"] == pytest.approx(2 / 3)
    low, high = region["disparity_ci95"]
    assert 0.4 < low < 2 / 3 < high < 0.9
    assert each["north"]["images"] == each["south"]["images"] == 30
    income = result.metrics["by_attribute"]["income"]
    assert income["disparity"] == 0 and set(income["groups"]) == {"0", "1"}
    assert result.notes == ["income: fewer than 30 examples of 0, 1"]


def test_groups_are_a_name_or_names_by_attribute() -> None:
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    for given, wanted in (
        ("north", {"group": "north"}),
        (3, {"group": "3"}),
        ({"income": 2, "region": " "}, {"income": "2"}),
        (None, {}),
        ([1], {}),
        (True, {}),
    ):
        assert groups_of(Example(image, (), extras={"groups": given})) == wanted


def test_a_model_without_texts_is_left_out() -> None:
    with pytest.raises(NotApplicable, match="no text tower"):
        subject = oracle(text=None)
        fairness(subject, encoded(subject, [told("red")]), Context())


def test_groups_of_unequal_size_and_examples_without_a_label_are_counted_as_they_are() -> None:
    right = [told(color, groups="north") for color in [*INKS] * 2]
    wrong = [replace(one, extras=one.extras | {"label": "red", "groups": "south"}) for one in right * 2]
    bare = [replace(one, extras={"groups": "west"}) for one in right]
    subject = oracle()
    found = fairness(subject, encoded(subject, [*bare, *right, *wrong]), Context()).metrics["by_attribute"]["group"]
    assert {name: one["images"] for name, one in found["groups"].items()} == {"north": 6, "south": 12}
    assert found["disparity"] == pytest.approx(2 / 3)
