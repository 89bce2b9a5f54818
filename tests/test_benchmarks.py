"""Benchmarks on graded cases, whose metrics are worked out by hand."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import Small
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Oracle
from test_evaluate import encoded, of, oracle, square

from opensiglip.data.boxes import BoxFormat
from opensiglip.data.example import Box, Caption, Example, Region, Source
from opensiglip.data.sources.registry import open_source
from opensiglip.data.tasks import TASKS
from opensiglip.data.text import TextPipeline
from opensiglip.evaluation.benchmark import Context, NotApplicable
from opensiglip.evaluation.benchmarks import grounding
from opensiglip.evaluation.benchmarks.captioning import captioning
from opensiglip.evaluation.benchmarks.compositionality import compositionality
from opensiglip.evaluation.benchmarks.grounded_captioning import grounded_captioning
from opensiglip.evaluation.benchmarks.text_tasks import measure
from opensiglip.evaluation.benchmarks.zero_shot import name_likelihoods, zero_shot
from opensiglip.evaluation.encode import encode_examples, sample_order
from opensiglip.evaluation.metrics.intervals import mean_with_interval
from opensiglip.evaluation.metrics.segmentation import mean_iou
from opensiglip.evaluation.run import missing_classes
from opensiglip.models.model import Model


def test_a_box_counts_from_half_its_union_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five boxes that share 0.2, 0.4, 0.49, 0.5 and 0.9 of the target's ten rows: two of the five are found."""
    example = replace(square("red", 0), regions=tuple(Region((0.0, 0.0, 10.0, 10.0), {"en": "it"}) for _ in range(5)))
    boxes: list[Box] = [(0.0, 0.0, 10.0, height) for height in (2.0, 4.0, 4.9, 5.0, 9.0)]
    monkeypatch.setattr(grounding, "locate", lambda *_: boxes)
    model = oracle(decoder=object(), boxes=BoxFormat(), tasks=("aref",))
    metrics = grounding.grounding(model, encoded(model, [example]), Context()).metrics
    assert metrics["accuracy"] == pytest.approx(2 / 5)
    assert metrics["mean_iou"] == pytest.approx((0.2 + 0.4 + 0.49 + 0.5 + 0.9) / 5)


def test_a_class_that_few_images_have_leaves_the_point_in_its_interval() -> None:
    """Ground everywhere, of four classes: each thing is in one image of twenty, so most draws lack one of them."""
    areas = torch.zeros(20, 3, 4, dtype=torch.int64)
    areas[:, :2, 0] = torch.tensor([50, 100])[:, None].T
    areas[:, 2, 0] = 50
    for thing in (1, 2, 3):
        areas[thing, 2, thing] = 50
    found = mean_iou("miou", areas)
    assert found["miou"] == pytest.approx(0.5 / 4)
    low, high = found["miou_ci95"]
    assert low <= found["miou"] <= high and high - low < 0.01, "not the mean over the classes that were drawn"


@given(st.lists(st.lists(st.integers(0, 4), min_size=9, max_size=9), min_size=1, max_size=6))
@settings(deadline=None, max_examples=25)
def test_a_metric_lies_in_its_interval(rows: list[list[int]]) -> None:
    areas = torch.tensor(rows).view(-1, 3, 3)
    areas[:, 1:] += areas[:, :1]  # what is shared is part of both
    for found in (mean_iou("x", areas), mean_with_interval("x", [row[0] / 3 for row in rows], range(len(rows)))):
        low, high = found["x_ci95"]
        assert low <= found["x"] <= high


def test_what_training_writes_scores_best_whatever_its_case(pipeline: TextPipeline) -> None:
    """The decoder writes lower-cased, normalised text, so names and captions are compared in that form."""
    box = (0.0, 0.0, 10.0, 10.0)
    written, targets = [[("man", box), ("big fox", box)]], [[("Man", box), ("Big  FOX", box)]]
    how: dict[str, Any] = {"places": [0], "sizes": [(32, 32)], "canonical": pipeline.canonical}
    assert measure(TASKS["detect"], written, targets, **how) == pytest.approx({"detect_ap": 1, "detect_ap50": 1})
    other = [[("men", box), ("big fox", box)]]
    assert measure(TASKS["detect"], other, targets, **how)["detect_ap50"] == pytest.approx(0.5)
    ligature, letters = "a ﬁne ½ fox", pipeline.canonical("a ﬁne ½ fox")
    assert "ﬁ" not in letters
    assert measure(TASKS["count"], [letters], [ligature], **how)["count_exact_match"] == 1
    captions = ["A ﬁne Fox sits HERE", "two big owls ﬂy home"]
    canonical, how = list(map(pipeline.canonical, captions)), how | {"places": [0, 1], "sizes": [(32, 32)] * 2}
    for some, others in ((captions, canonical), (canonical, captions)):
        found = measure(TASKS["caption"], some, [[other] for other in others], **how)
        assert found["caption_cider"] == pytest.approx(10), "every n-gram is found, and no other image has it"


def test_the_caption_has_to_beat_every_negative() -> None:
    """Reads colours, so it tells red from green; "red" against itself is a tie, which is wrong."""
    negatives = [["a green square", "a blue square"], ["a green square", "a red square"], "a blue square"]
    examples = [
        replace(square("red", 0, {"negative_caption": some, "label": "order"}), captions=(Caption("a red square"),))
        for some in negatives
    ]
    metrics = compositionality(oracle(), encoded(oracle(), examples), Context()).metrics
    assert metrics["pairs"] == 3 and metrics["similarity"] == pytest.approx(2 / 3)
    assert metrics["chance"] == pytest.approx((1 / 3 + 1 / 3 + 1 / 2) / 3)


def test_a_decoder_of_tasks_is_asked_what_it_was_trained_on(small: Small, pipeline: TextPipeline) -> None:
    """Of a mixture with captions the likelihood counts; without, no benchmark of captions applies and none crashes."""
    model = replace(of(small, pipeline, "locca"), text=None, tasks=("caption", "count"))
    examples = encode_examples(model, open_source("scenes:drawings=5,objects=2", split="val", pixels=32), 8)
    metrics = compositionality(model, examples, Context(languages=("en",))).metrics
    assert {"likelihood", "blind_likelihood"} <= set(metrics) and "similarity" not in metrics
    with pytest.raises(NotApplicable, match="decoder that writes captions"):
        compositionality(replace(model, tasks=("count",)), examples, Context())
    with pytest.raises(NotApplicable, match="decoder that writes captions"):
        zero_shot(replace(model, tasks=("count",)), examples, Context())


def test_pali_is_judged_on_what_it_was_trained_on(small: Small, pipeline: TextPipeline) -> None:
    """An encoder-decoder has figures of every benchmark of texts; the grammar makes its boxes, and it reads images."""
    recipe = small("pali", tasks="caption,aref,gcap")
    torch.manual_seed(0)
    network = Model.new(recipe.architecture, len(pipeline)).eval()
    assert network.pali is not None
    torch.nn.init.normal_(network.pali.vocabulary.weight)
    model = Oracle.of(network, pipeline, name="pali", boxes=BoxFormat(), tasks=("caption", "aref", "gcap"))
    examples = encode_examples(model, open_source("scenes:drawings=5,objects=2", split="val", pixels=32), 8)
    context = Context(languages=("en",))
    found = grounding.grounding(model, examples, context).metrics
    assert found["phrases"] > 0 and found["invalid"] == 0
    named = grounded_captioning(model, examples, context).metrics
    assert named["regions"] == found["phrases"] and 1 <= named["mean_rank"] <= 10
    assert captioning(model, examples, context).metrics["captions"] > 0
    judged = compositionality(model, examples, context).metrics
    assert {"likelihood", "blind_likelihood"} <= set(judged) and "similarity" not in judged
    prompt = model.unchecked_caption_prompt("en")
    scores = name_likelihoods(model, examples, torch.arange(8), ["fox", "apple"], "en")
    alone = [model.score(examples.features, [(place, prompt, model.target_ids(prompt, "fox"))]) for place in range(8)]
    assert (
        torch.allclose(scores[:, 0].float(), torch.tensor(alone)[:, 0], atol=1e-3)
        and len(set(scores[:, 0].tolist())) > 1
    )
    for untrained in (grounding.grounding, grounded_captioning, captioning, compositionality):
        with pytest.raises(NotApplicable):
            untrained(replace(model, tasks=("count",)), examples, context)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("C++", "C#"), "'C#' and 'C\\+\\+' are all 'c'"),
        (("?", "red"), "'\\?' no text at all"),
    ],
)
def test_class_names_that_become_one_text_are_named(names: tuple[str, str], words: str) -> None:
    examples = [square("red", 0, {"label": names[0]}), square("green", 8, {"label": names[1]})]
    context = Context(languages=("en",))
    with pytest.raises(NotApplicable, match=words):
        zero_shot(oracle(), encoded(oracle(), examples), context)
    metrics = zero_shot(oracle(), encoded(oracle(), examples), replace(context, raw_class_names=True)).metrics
    assert metrics["classes"] == 2 and "accuracy" in metrics


class Sorted(Source):
    """240 rows of 12 classes, sorted by class, or each class in turn."""

    name, languages = "sorted", ("en",)

    def __init__(self, in_turn: bool = False, shuffled: bool = False) -> None:
        self.in_turn, self.shuffled = in_turn, shuffled  # type: ignore[misc]

    def __len__(self) -> int:
        return 240

    def labels(self) -> list[str]:
        return [f"class {row % 12 if self.in_turn else row // 20}" for row in range(240)]

    def example(self, index: int, language: str | None = None) -> Example:
        return square("red", 0, {"label": self.labels()[index]})

    def texts(self) -> Any:
        return iter(())

    def describe(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("in_turn", [False, True])
def test_the_examples_are_a_spread_of_the_rows(in_turn: bool) -> None:
    source = Sorted(in_turn)
    order = list(sample_order(source, 60))
    assert sorted(order) == list(range(240)), "the rest stands by for rows that can't be read"
    classes = Counter(source.labels()[row] for row in order[:60])
    assert len(classes) == 12 and (in_turn or set(classes.values()) == {5})
    assert list(sample_order(source, 60)) == order
    assert list(sample_order(source, 500)) == list(range(240))
    assert next(sample_order(Sorted(shuffled=True), 60)) == 0


def test_classes_that_were_not_drawn_are_counted() -> None:
    few = encode_examples(oracle(), Sorted(), 5)
    (note,) = missing_classes(Sorted(), few, "--count")
    assert note == "5 examples of 240 have 5 of 12 classes; raise --count to have them all."
    assert missing_classes(Sorted(), encode_examples(oracle(), Sorted(), 60), "--count") == []
