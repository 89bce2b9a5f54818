"""SuperCLIP's term: what it predicts, how rare a token is to it, and what a run keeps of that."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import SHAPE, Small, collate, draw, exact
from safetensors.torch import load_file
from test_resume import assert_same_end, cut_short
from torch import Tensor

from opensiglip.data.fields.field import Visit
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.models.sizes import SHAPES
from opensiglip.objectives.base import Encoded
from opensiglip.objectives.token_classification import TokenClassification
from opensiglip.training.learner import Learner
from opensiglip.training.run import train
from opensiglip.types import Batch

NAMES = ["siglip", "clip", "siglip2", "siglip2_naflex"]


def built(small: Small, name: str, pipeline: TextPipeline) -> tuple[Learner, TokenClassification]:
    torch.manual_seed(0)
    learner = Learner.new(small(name, token_weight=1.0), pipeline).double()
    objective = learner.objectives["token_classification"]
    assert isinstance(objective, TokenClassification)
    objective.initialise(learner.model, 8, ())
    return learner, objective


def present(batch: Batch, vocabulary: int, pad: int) -> Tensor:
    """[B, V], 1 where an example's caption has a token."""
    found = torch.zeros(len(batch["text"]), vocabulary).double()
    for row, (ids, has) in enumerate(zip(batch["text"].tolist(), batch["has_text"].tolist(), strict=True)):
        for token in set(ids) - {pad} if has else ():
            found[row, token] = 1
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_cross_entropy_with_idf_weighted_labels(
    name: str, small: Small, uneven: list[Visit], pipeline: TextPipeline
) -> None:
    recipe = small(name, token_weight=1.0)
    batch = exact(collate(recipe, draw(recipe, uneven, pipeline), pipeline))
    learner, objective = built(small, name, pipeline)
    torch.manual_seed(1)
    objective.steps.fill_(5)
    objective.captions.uniform_(0, 5)
    torch.nn.init.normal_(objective.norm.weight)
    ours = objective(Encoded(learner.model, batch))
    image = Encoded(learner.model, batch).image()
    pooled = [tokens[valid].mean(0) for tokens, valid in zip(image.tokens, kept(image), strict=True)]
    logits = F.linear(objective.norm(torch.stack(pooled)), objective.head.weight, objective.head.bias)
    rare = torch.log((5 + 2 / 8) / (objective.captions + 1 / 8))
    labels = F.normalize(present(batch, len(pipeline), pipeline.policy.pad_id) * rare, p=1, dim=1)
    plain = -(labels * logits.log_softmax(-1)).sum()
    weights = [learner.model.vision.tower.post_layernorm.weight, *objective.parameters()]
    gaps = [
        (x - y).abs().max()
        for x, y in zip(torch.autograd.grad(ours, weights), torch.autograd.grad(plain, weights), strict=True)
    ]
    assert ours.item() == pytest.approx(plain.item(), abs=1e-10) and max(gaps) < 1e-10
    assert int(objective.live(batch)) == 5 and not labels[~batch["has_text"]].any()


def kept(image: Any) -> Tensor:
    return torch.ones(image.tokens.shape[:2], dtype=torch.bool) if image.valid is None else image.valid


def test_an_image_tower_of_another_make_is_refused(pipeline: TextPipeline) -> None:
    networks: Any = SimpleNamespace(foreign=SimpleNamespace(vision={}))
    with pytest.raises(
        UserError, match="--token-weight needs an OpenSigLIP image tower; leave out --vision, or give 0"
    ):
        TokenClassification().build(pipeline, networks)


def test_a_token_in_every_caption_soon_weighs_nothing_and_a_first_step_weighs_all_alike(
    small: Small, visits: list[Visit], pipeline: TextPipeline
) -> None:
    recipe = small("siglip", token_weight=1.0)
    batch = exact(collate(recipe, draw(recipe, visits[:8], pipeline), pipeline))
    learner, objective = built(small, "siglip", pipeline)
    assert torch.equal(objective.rarity(), torch.full((len(pipeline),), 2.0).double().log())
    for _ in range(200):
        encoded = Encoded(learner.model, batch)
        with torch.no_grad():
            objective(encoded)
        objective.after_step(encoded.notes)
    shares = present(batch, len(pipeline), pipeline.policy.pad_id).mean(0)
    torch.testing.assert_close(objective.captions, 200 * shares, rtol=1e-12, atol=1e-12)
    rare = objective.rarity()
    assert float(rare[pipeline.policy.eos_id]) < 0.001 and float(rare[shares == 0].min()) > 7
    torch.testing.assert_close(
        rare[shares == 0.25], rare[shares == 0.25] * 0 + torch.tensor(4.0).log(), rtol=1e-2, atol=0
    )


def test_counts_of_uneven_parts_are_those_of_the_whole_batch(
    small: Small, uneven: list[Visit], pipeline: TextPipeline
) -> None:
    recipe = small("siglip", token_weight=1.0)
    drawn = draw(recipe, uneven, pipeline)
    seen = []
    for size in (8, 2):
        learner, objective = built(small, "siglip", pipeline)
        notes = []
        for at in range(0, 8, size):
            encoded = Encoded(learner.model, exact(collate(recipe, drawn[at : at + size], pipeline)))
            objective(encoded)
            notes.append(encoded.notes)
        name = "token_classification/captions"
        objective.after_step({name: torch.stack([note[name] for note in notes]).mean(0)})
        seen.append((objective.captions.clone(), objective.steps.clone()))
    assert torch.equal(seen[0][0], seen[1][0]) and torch.equal(seen[0][1], seen[1][1]) and seen[0][1] == 1
    whole = present(exact(collate(recipe, drawn, pipeline)), len(pipeline), pipeline.policy.pad_id)
    torch.testing.assert_close(seen[0][0], whole.sum(0) / 5)
    nothing = {name: torch.zeros_like(notes[0][name])}
    objective.after_step(nothing)
    assert torch.equal(objective.captions, seen[1][0]) and objective.steps == 1, "a step without texts is not counted"


def test_counts_are_saved_and_a_run_that_was_cut_short_goes_on_bit_for_bit(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SHAPES, "tiny", SHAPE)
    settings: dict[str, Any] = {"size": "tiny", "resolution": 32, "token_weight": 1.0, "batch_size": 8, "workers": 0}
    settings |= {"steps": 6, "save_every": 3, "held_out": 0, "precision": "fp32", "memory_check": False}
    settings |= {"data": folder, "vocabulary": 300}
    train("siglip", out=tmp_path / "straight", **settings)
    cut_short(4, lambda: train("siglip", out=tmp_path / "cut", **settings))
    train("siglip", out=tmp_path / "cut", resume=True, **settings)
    assert_same_end(tmp_path / "cut", tmp_path / "straight")
    saved = load_file(tmp_path / "cut/checkpoints/step-00000006/learner.safetensors")
    assert saved["objectives.token_classification.steps"].item() == 6
    assert saved["objectives.token_classification.captions"][1] == 6, "every caption has the end token"
