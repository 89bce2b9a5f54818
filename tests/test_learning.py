"""Each recipe learns: a frozen batch is memorised, boxes included, by looking at the images."""

import itertools
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from conftest import Drawn, Small, collate, draw
from prefixes import referring_prefix

from opensiglip.data.fields.captions import PREFIXES, Captions
from opensiglip.data.fields.field import Visit
from opensiglip.data.loader import DataPlan, StepBatch, to_device
from opensiglip.data.text import TextPipeline
from opensiglip.evaluation.metrics.boxes import box_iou
from opensiglip.inference.box_grammar import BoxGrammar
from opensiglip.inference.generate import generate
from opensiglip.models.model import Model
from opensiglip.models.sizes import Shape
from opensiglip.objectives.base import Encoded
from opensiglip.objectives.captioning import Caption
from opensiglip.optim import adamw
from opensiglip.recipes import RECIPES, Recipe
from opensiglip.training.learner import Learner
from opensiglip.training.log import read_lines
from opensiglip.training.loop import Loop
from opensiglip.types import Batch

STEPS, LR = 300, 3e-3


def reading(task: str, parallel: bool = False) -> list[str]:
    """The recipes on square images whose caption field has that task (and predicts some captions in parallel)."""
    recipes = {name: function(size="tiny") for name, function in RECIPES.items()}
    return [
        name
        for name, recipe in recipes.items()
        for field in recipe.fields
        if isinstance(field, Captions) and task in field.tasks and not recipe.architecture.naflex
        if not parallel or field.parallel > 0
    ]


@dataclass
class Trained:
    """A recipe that has seen one batch 300 times."""

    recipe: Recipe
    model: Model
    drawn: Drawn
    batch: Batch
    rows: list[dict[str, Any]]

    @property
    def field(self) -> Captions:
        return next(field for field in self.recipe.fields if isinstance(field, Captions))

    def sequences(self) -> list[Any]:
        """What the caption field drew for each example."""
        return [row[self.recipe.fields.index(self.field)] for row in self.drawn]


@pytest.fixture(scope="module")
def trained() -> dict[str, Trained]:
    """Filled by `learn`, once per recipe."""
    return {}


@pytest.fixture
def learn(
    trained: dict[str, Trained],
    small: Small,
    visits: list[Visit],
    pipeline: TextPipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    def run(name: str) -> Trained:
        if name not in trained:
            recipe = small(name, Shape(width=64, depth=2, mlp=128, heads=2))
            drawn = draw(recipe, visits, pipeline)
            batch = collate(recipe, drawn, pipeline)
            always = itertools.repeat(StepBatch([batch], Counter()), STEPS)
            monkeypatch.setattr("opensiglip.training.loop.loader", lambda *_, **__: always)
            torch.manual_seed(0)
            learner = Learner.new(recipe, pipeline)
            loop = Loop(
                accelerator=Accelerator(cpu=True),
                learner=learner,
                optimizer=adamw(learner, LR, 0.0),
                plan=DataPlan(
                    sources=[],
                    frame=recipe.frame,
                    fields=recipe.fields,
                    pipeline=pipeline,
                    batch_size=len(visits),
                    seed=0,
                    steps=STEPS,
                ),
                folder=tmp_path,
                steps=STEPS,
                lr=LR,
                warmup=STEPS // 20,
                clip_norm=1.0,
                workers=0,
                save_every=STEPS,
                log_every=1,
            )
            loop.run()
            seen = to_device(batch, torch.device("cpu"))
            trained[name] = Trained(recipe, learner.model.eval(), drawn, seen, read_lines(tmp_path / "metrics.jsonl"))
        return trained[name]

    return run


@pytest.mark.parametrize("name", RECIPES)
def test_a_frozen_batch_is_memorised(name: str, learn: Any) -> None:
    rows = learn(name).rows
    assert len(rows) == STEPS
    recipe = learn(name).recipe
    assert {key.removeprefix("loss/") for key in rows[-1] if "loss/" in key} == {o.name for o in recipe.objectives}
    for objective in recipe.objectives:
        loss, kl = f"loss/{objective.name}", f"{objective.name}/kl"
        own = [row for row in rows if loss in row]
        assert own[0]["step"] == math.ceil(objective.start * STEPS)
        if objective.name == "self_critical":  # its loss means nothing; 10 is a caption of the image's own alone
            assert own[-1]["self_critical/reward"] > max(1.0, 4 * own[1]["self_critical/reward"])
        elif objective.teacher is not None:  # the loss is the divergence and the teacher's own entropy
            # siglip2 gives these terms a fifth of the steps, and the teacher moves at the recipe's momentum meanwhile.
            assert own[-1][kl] < 0.6 * max(row[kl] for row in own), kl
        else:  # a locked tower is random here: it tells images apart less well
            pairs_only = recipe.architecture.frozen and recipe.architecture.text is not None
            # Hard negatives begin far from their images, as the bias is -10: their loss rises with it first.
            before = max(row[loss] for row in own) if objective.name == "hard_negatives" else own[0][loss]
            labels = objective.name == "token_classification"  # whose entropy is left: several tokens are in a caption
            assert own[-1][loss] < (0.5 if labels else 0.3 if pairs_only else 0.05) * before, loss


@pytest.mark.parametrize("name", reading("aref"))
def test_the_boxes_of_a_memorised_batch_are_found(name: str, learn: Any, pipeline: TextPipeline) -> None:
    this = learn(name)
    asked = [
        (place, pipeline.text(sequence.target).rpartition(" : "))
        for place, row in enumerate(this.sequences())
        for sequence in row
        if sequence.prefix == pipeline.ids(PREFIXES["aref"])
    ]
    assert len(asked) >= 12
    with torch.no_grad():
        tokens = this.model.vision(this.batch["image"]).tokens
    prefixes = [referring_prefix(pipeline, phrase) for _, (phrase, _, _) in asked]
    memory = tokens[[place for place, _ in asked]]
    boxes = this.recipe.boxes
    answers = generate(this.model.decoder, memory, prefixes, pipeline, grammar=BoxGrammar(pipeline, boxes))
    found = [boxes.read(pipeline.text(answer), 32, 32) for answer in answers]
    truth = [boxes.read(box, 32, 32) for _, (_, _, box) in asked]
    overlaps = [box_iou(a, b) for a, b in zip(found, truth, strict=True) if a and b]
    assert len(overlaps) == len(asked)
    assert sum(overlaps) / len(overlaps) > 0.9


@pytest.mark.parametrize("name", reading("cap", parallel=True))
def test_captions_are_read_off_the_image(name: str, learn: Any, pipeline: TextPipeline) -> None:
    """In parallel mode there is nothing but the image to go by: with another's, the loss rises by over a nat."""
    this = learn(name)
    sequences = [[sequence for sequence in row if sequence.parallel] for row in this.sequences()]
    captions = this.field.collate(sequences, pipeline)
    assert captions["sequences"].sum() >= 4

    def loss(image: torch.Tensor) -> float:
        encoded = Encoded(this.model, captions | {"image": image})
        caption = Caption()
        return float((caption(encoded) / caption.live(encoded.batch)).detach())

    image = this.batch["image"]
    assert loss(image) < 0.5
    assert loss(image.roll(1, 0)) > loss(image) + 1
