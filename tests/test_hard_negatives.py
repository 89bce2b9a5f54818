"""Texts that nearly fit an image: what they are, and what they add to the sigmoid."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Small, collate, draw, exact
from PIL import Image

from opensiglip.data.example import Example
from opensiglip.data.fields.field import Visit
from opensiglip.data.fields.hard_texts import HardTexts, hard_texts
from opensiglip.data.sources.registry import open_source
from opensiglip.data.text import TextPipeline
from opensiglip.objectives.base import Encoded
from opensiglip.training.learner import Learner


def test_the_sum_is_that_of_a_sigmoid_with_more_columns(
    small: Small, uneven: list[Visit], pipeline: TextPipeline
) -> None:
    recipe = small("siglip", hard_negatives=3)
    batch = exact(collate(recipe, draw(recipe, uneven, pipeline), pipeline))
    assert batch["hard_text"].shape[:2] == batch["has_hard_text"].shape == (8, 3)
    assert 0 < int(batch["has_hard_text"].sum()) < 24 and not batch["has_hard_text"][~batch["has_text"]].any()
    torch.manual_seed(0)
    learner = Learner.new(recipe, pipeline).double()
    torch.nn.init.constant_(learner.model.logit_scale, 1.5)
    torch.nn.init.constant_(learner.model.logit_bias, -1.0)
    encoded = Encoded(learner.model, batch)
    by_terms = {o.name: o for o in learner.terms()}
    ours = by_terms["hard_negatives"](encoded)
    whole = ours + by_terms["sigmoid"].compare(*by_terms["sigmoid"].features(encoded))
    images = F.normalize(learner.model.vision(batch["image"]).pooled, dim=-1)
    texts = F.normalize(learner.model.text(batch["text"]).pooled, dim=-1)
    scale, bias = learner.model.logit_scale.exp(), learner.model.logit_bias
    total = torch.zeros(1).double()
    for i in range(8):
        columns = [
            (texts[j], 1.0 if i == j else -1.0) for j in range(8) if batch["has_text"][i] and batch["has_text"][j]
        ]
        for k in range(3):
            if batch["has_hard_text"][i, k]:
                hard = F.normalize(learner.model.text(batch["hard_text"][i, k][None]).pooled, dim=-1)[0]
                columns.append((hard, -1.0))
        for text, z in columns:
            total = total - F.logsigmoid(z * (scale * (images[i] @ text) + bias))
    assert float(whole.detach() - total.detach()) == pytest.approx(0, abs=1e-9)
    assert float(ours.detach()) > 0.1
    assert int(by_terms["hard_negatives"].live(batch)) == int(batch["has_text"].sum()), "n of Sigmoid"


def test_those_of_scenes_are_false_and_differ_from_the_caption(scenes: object) -> None:
    source = open_source("scenes:drawings=40,objects=4,languages=en|de", pixels=32)
    counts = []
    for index in range(60):
        example = source.example(index, "de")
        known = hard_texts(example, "de", 3)
        assert example.captions[0].language == "de" and example.captions[0].text not in known
        assert len(set(known)) == len(known) and known == hard_texts(example, "de", 3)
        counts.append(len(known))
        strange = example.extras["absent"]["de"]
        assert any(strange in text for text in known), "one names a drawing that is not there"
    assert min(counts) >= 1 and max(counts) >= 4
    examples = [source.example(index, "de") for index in range(20)]
    assert any(hard_texts(one, "de", 3) != hard_texts(one, "de", 4) for one in examples), "others at another visit"


def test_those_of_a_row_are_its_negative_caption(tmp_path: Path, pipeline: TextPipeline) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    row = {"file_name": "a.png", "captions": ["a red square"], "negative_caption": ["a blue square", "two red squares"]}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    example = open_source(str(tmp_path), pixels=32).example(0)
    assert hard_texts(example, "en", 0) == ["a blue square", "two red squares"]
    visit = Visit(example, example.image, (), example.captions[0])
    drawn = {tuple(drawn_texts(visit, seed, pipeline)) for seed in range(8)}
    assert drawn == {("a blue square",), ("two red squares",)}, "one of them, another one from visit to visit"
    (ids, has), field = HardTexts(3).draw(visit, np.random.default_rng(0), pipeline), HardTexts(3)
    assert has.tolist() == [True, True, False] and len(ids) == 3
    bare = replace(visit, example=Example(example.image, example.captions))
    assert field.draw(bare, np.random.default_rng(0), pipeline)[1].tolist() == [False] * 3


def drawn_texts(visit: Visit, seed: int, pipeline: TextPipeline) -> list[str]:
    ids, has = HardTexts(1).draw(visit, np.random.default_rng(seed), pipeline)
    return [pipeline.text(row) for row, one in zip(ids, has, strict=True) if one]
