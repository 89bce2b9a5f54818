"""The decoder's tasks: figures that are right where the answers are known."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from oracle import Oracle
from torch import Tensor
from toys import small_model

from opensiglip.data.boxes import BoxFormat
from opensiglip.data.example import Source
from opensiglip.data.fields.captions import Ids
from opensiglip.data.text import TextPipeline
from opensiglip.evaluation.benchmark import Context, NotApplicable, ProbeConfig
from opensiglip.evaluation.benchmarks import captioning, decoder_probe, grounding
from opensiglip.evaluation.benchmarks import grounded_captioning as naming
from opensiglip.evaluation.benchmarks.compositionality import compositionality
from opensiglip.evaluation.encode import EncodedExamples, encode_examples
from opensiglip.evaluation.metrics.text import words
from opensiglip.inference.text_generator import Prompt
from opensiglip.models.sizes import Shape

TASKS = ("cap", "aref", "gcap")


@pytest.fixture(scope="module")
def subject(pipeline: TextPipeline) -> Oracle:
    """A small model that knows nothing."""
    model = small_model(text=True, vocabulary=len(pipeline), length=pipeline.policy.length).eval()
    return Oracle.of(model, pipeline, name="small", boxes=BoxFormat(), tasks=TASKS)


@pytest.fixture(scope="module")
def judged(subject: Oracle, scenes: Source) -> EncodedExamples:
    return encode_examples(subject, scenes, 24)


@pytest.fixture
def context(scenes: Source) -> Context:
    return Context(scenes, train_count=32)


def test_found_boxes_are_right_and_what_is_none_is_wrong(
    subject: Oracle, judged: EncodedExamples, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = judged.referable_regions

    def find(subject: Oracle, judged: EncodedExamples, places: Sequence[int], *_: Any) -> list[Any]:
        own = list(places) == [place for place, _ in asked]
        return [region.bbox if own and number else None for number, (_, region) in enumerate(asked)]

    monkeypatch.setattr(grounding, "locate", find)
    figures = grounding.grounding(subject, judged, context).metrics
    assert figures["invalid"] == 1 and figures["phrases"] == len(asked)
    assert figures["accuracy"] == figures["mean_iou"] == pytest.approx(1 - 1 / len(asked))
    assert figures["accuracy_shuffled_images"] == 0 < figures["mean_iou_constant_box"] < 1


def test_a_model_that_knows_nothing_writes_boxes_all_the_same(
    subject: Oracle, judged: EncodedExamples, context: Context
) -> None:
    findings = grounding.grounding(subject, judged, context)
    assert findings.metrics["invalid"] == 0 and findings.metrics["accuracy"] < 0.3
    assert all(sample.target_boxes and sample.predicted_boxes for sample in findings.samples)


def test_a_row_with_no_room_for_a_box_counts_as_wrong(
    judged: EncodedExamples, subject: Oracle, context: Context
) -> None:
    long = " ".join(["a fox left of it"] * 30)
    assert grounding.locate(subject, judged, [0, 1], [long, "fox"], context)[0] is None


def test_regions_that_name_several_boxes_are_left_out(
    judged: EncodedExamples, subject: Oracle, context: Context
) -> None:
    several = [
        replace(example, regions=tuple(replace(region, n_boxes=2) for region in example.regions))
        for example in judged.examples
    ]
    for task in (grounding.grounding, naming.grounded_captioning):
        with pytest.raises(NotApplicable, match="one box"):
            task(subject, replace(judged, examples=several), context)


def test_phrases_that_are_said_right_score_best(
    subject: Oracle, judged: EncodedExamples, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [next(iter(region.phrases.values())) for _, region in judged.referable_regions]
    pipeline = subject.pipeline
    assert pipeline is not None
    monkeypatch.setattr(Oracle, "generate", lambda *_, **__: [pipeline.ids(f" {phrase}") for phrase in asked])
    figures = naming.grounded_captioning(subject, judged, context).metrics
    assert figures["token_f1"] == 1 and figures["cider"] > 2
    assert 1 <= figures["mean_rank"] <= 10 and figures["chance_first"] == pytest.approx(0.1, abs=0.01)


def test_ranks_follow_the_likelihoods(
    subject: Oracle, judged: EncodedExamples, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fewer_tokens_are_likelier(subject: Oracle, features: Any, asked: Any) -> list[float]:
        return [-len(ids) for _, _, ids in asked]

    monkeypatch.setattr(Oracle, "score", fewer_tokens_are_likelier)
    figures = naming.grounded_captioning(subject, judged, context).metrics
    asked = judged.referable_regions
    owners, phrases = [place for place, _ in asked], [next(iter(region.phrases.values())) for _, region in asked]
    pipeline = subject.pipeline
    assert pipeline is not None
    ranks = []
    for number, phrase in enumerate(phrases):
        others = naming.distractors(number, owners, phrases, context.seed)
        ranks.append(1 + sum(len(pipeline.ids(f" {other}")) <= len(pipeline.ids(f" {phrase}")) for other in others))
    assert figures["mean_rank"] == pytest.approx(sum(ranks) / len(ranks)) and len(set(ranks)) > 3


def test_distractors_are_other_phrases_that_can_not_be_true_as_well() -> None:
    phrases = ["fox", "fox on the left", "apple", "green apple", "fox", "box", *(f"thing{n}" for n in range(20))]
    owners = [0, 0, 0, 1, 1, 0, *range(2, 22)]
    found = naming.distractors(0, owners, phrases, 0)
    assert found[:2] == ["apple", "box"], "those of the same image come first"
    assert len(found) == len(set(found)) == 9 and not {"fox", "fox on the left"} & set(found)
    assert found == naming.distractors(0, owners, phrases, 0) != naming.distractors(0, owners, phrases, 1)


@pytest.mark.parametrize(
    ("answer", "truth", "expected"),
    [("red fox", "red fox", 1), ("fox", "red fox", 2 / 3), ("a a a", "a b", 2 / 5), ("", "fox", 0), ("box", "fox", 0)],
)
def test_token_f1(answer: str, truth: str, expected: float) -> None:
    assert naming.token_f1(answer.split(), truth.split()) == pytest.approx(expected)


def test_true_captions_score_best_and_another_images_hardly(
    subject: Oracle, judged: EncodedExamples, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = subject.pipeline
    assert pipeline is not None
    answers: list[Ids] = [pipeline.ids(f" {example.captions[0].text}") for example in judged.examples]
    wrong = [answers[-1], *answers[:-1]]
    monkeypatch.setattr(Oracle, "generate", lambda *some, **_: answers if some[3].num_beams == 1 else wrong)
    findings = captioning.captioning(subject, judged, context)
    figures = findings.metrics
    assert figures["bleu4_greedy"] == pytest.approx(1) and figures["cider_greedy"] > 5
    assert figures["bleu4_beam"] < 0.5 and figures["cider_beam"] < 0.3 * figures["cider_greedy"]
    assert figures["cider_shuffled_images"] < 0.3 * figures["cider_greedy"]
    assert figures["similarity_greedy"] == pytest.approx(figures["similarity_references"], abs=1e-5)
    low, high = figures["bleu4_beam_ci95"]
    assert low < figures["bleu4_beam"] < high


def test_captions_are_asked_for_in_the_language_of_the_examples(
    subject: Oracle, judged: EncodedExamples, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    german = [replace(one, captions=tuple(replace(c, language="de") for c in one.captions)) for one in judged.examples]
    asked: set[Ids] = set()

    def search(subject: Oracle, features: Any, prompts: Sequence[Prompt], *_: Any, **__: Any) -> list[Ids]:
        asked.update(prompt.prefix for prompt in prompts)
        return [()] * len(prompts)

    monkeypatch.setattr(Oracle, "generate", search)
    captioning.captioning(replace(subject, tasks=("caption",)), replace(judged, examples=german), context)
    assert subject.pipeline is not None and asked == {subject.pipeline.ids(" caption de")}


def test_a_bag_of_words_knows_what_is_there_but_not_how_it_stands(
    subject: Oracle, judged: EncodedExamples, context: Context
) -> None:
    vocabulary = {word: number for number, word in enumerate(sorted(set(words(every_text(judged)))))}

    def embed(texts: Sequence[str]) -> Tensor:
        rows = torch.zeros(len(texts), len(vocabulary) + 1)
        for row, text in zip(rows, texts, strict=True):
            for word in words(text):
                row[vocabulary.get(word, len(vocabulary))] += 1
        return rows

    bag = replace(subject, text=embed, decoder=None)
    seen = replace(judged, pooled=embed([example.captions[0].text for example in judged.examples]))
    figures = compositionality(bag, seen, context).metrics
    kinds = figures["kinds"]
    assert kinds["swap objects"]["similarity"] == 0, "a tie is not right"
    assert kinds["replace relation"]["similarity"] == kinds["replace object"]["similarity"] == 1
    assert 0 < figures["similarity"] < 1 and "likelihood" not in figures


def every_text(judged: EncodedExamples) -> str:
    return " ".join(caption.text for example in judged.examples for caption in example.captions)


def test_a_decoder_is_judged_beside_itself_blind(subject: Oracle, judged: EncodedExamples, context: Context) -> None:
    figures = compositionality(subject, judged, context).metrics
    assert {"similarity", "likelihood", "blind_likelihood"} <= set(figures)
    alike = replace(judged, tokens=judged.tokens[:1].expand_as(judged.tokens))
    same = compositionality(subject, alike, context).metrics
    assert same["likelihood"] == same["blind_likelihood"], "where all images are one, to see is to be blind"


def test_the_probe_trains_a_decoder_and_nothing_else(
    subject: Oracle, judged: EncodedExamples, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = replace(context, probe=ProbeConfig(steps=6))
    monkeypatch.setattr(decoder_probe, "SHAPE", replace(decoder_probe.SHAPE, width=32, depth=1, mlp=64))
    monkeypatch.setattr(decoder_probe, "_pipeline", lambda _: subject.pipeline)
    before = judged.tokens.clone()
    first = decoder_probe.decoder_probe(subject, judged, context).metrics
    again = decoder_probe.decoder_probe(subject, judged, context).metrics
    assert first == again and torch.equal(before, judged.tokens)
    assert first["loss"] < math.log(400) and first["training_images"] == 32
    assert {"grounding_accuracy", "grounded_captioning_token_f1", "captioning_cider_greedy"} <= set(first)
    assert "captioning_similarity_greedy" not in first, "the probe has no text tower"
    told = decoder_probe.decoder_probe(subject, judged, replace(context, probe=ProbeConfig(6, ("aref",)))).metrics
    assert "grounding_accuracy" in told and not any(name.startswith(("captioning", "grounded")) for name in told)
    both = ProbeConfig(6, ("aref",), Shape(width=16, depth=2, mlp=32, heads=2))
    two = decoder_probe.decoder_probe(subject, judged, replace(context, probe=both)).metrics
    assert {name: two[name] for name in told} == told, "the second decoder changes nothing of the first"
    assert {name for name in two if name not in told} == {
        f"smaller_{name}" for name in told if name != "training_images"
    }
    assert two["smaller_loss"] != two["loss"]


def test_what_a_model_lacks_is_said(subject: Oracle, judged: EncodedExamples, context: Context) -> None:
    blind = replace(subject, decoder=None, text=None)
    for task in (grounding.grounding, naming.grounded_captioning, captioning.captioning, compositionality):
        with pytest.raises(NotApplicable):
            task(blind, judged, context)
    with pytest.raises(NotApplicable, match="training"):
        decoder_probe.decoder_probe(subject, judged, Context())
