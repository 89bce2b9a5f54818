"""Regions and phrases: which patches a box takes, what the term sums over, and what a run keeps of it."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SHAPE, Small, collate, draw, exact, half_read
from test_resume import assert_same_end, cut_short
from torch import Tensor
from toys import Rectangles

from opensiglip.data.example import Example, Region
from opensiglip.data.fields.field import Visit
from opensiglip.data.fields.frame import Frame
from opensiglip.data.fields.region_texts import RegionTexts
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.models.sizes import SHAPES
from opensiglip.objectives.base import Encoded
from opensiglip.objectives.region_pairs import RegionPairs, overlaps
from opensiglip.recipes import Recipe
from opensiglip.training.learner import Learner
from opensiglip.training.run import train
from opensiglip.types import Batch

NAMES = ["siglip", "siglip2", "siglip2_naflex", "siglip, half of the patches read"]


def made(small: Small, name: str) -> Recipe:
    recipe = small(name.partition(",")[0], region_pairs=1.0)
    return half_read(recipe) if "," in name else recipe


def boxes(*some: tuple[float, float, float, float]) -> Batch:
    return {"region_box": torch.tensor([some]).double(), "has_region": torch.ones(1, len(some), dtype=torch.bool)}


def test_a_patch_weighs_the_area_that_it_shares_with_the_box() -> None:
    asked = boxes((4, 0, 12, 8), (6, 6, 10, 20), (0, 0, 32, 32))
    halves, cross, whole = overlaps(asked | {"image": torch.zeros(1, 3, 32, 32)}, 8)[0].view(3, 4, 4)
    assert halves.tolist() == [[0.5, 0.5, 0, 0], [0] * 4, [0] * 4, [0] * 4]
    expected = [[1 / 16, 1 / 16, 0, 0], [1 / 4, 1 / 4, 0, 0], [1 / 8, 1 / 8, 0, 0], [0] * 4]
    assert cross.tolist() == expected and bool((whole == 1).all())


def test_it_does_so_on_a_grid_of_any_shape_and_of_the_patches_that_are_read() -> None:
    shaped = {"image": torch.zeros(1, 8, 192), "image_shapes": torch.tensor([[2, 3]])}
    shaped |= {"image_valid": torch.arange(8)[None] < 6}  # two rows of three, and padding
    asked = boxes((12, 4, 24, 16))
    assert overlaps(asked | shaped, 8)[0, 0].tolist() == [0, 0.25, 0.5, 0, 0.5, 1, 0, 0]
    some = {"image_kept": torch.tensor([[[1, 3, 5, -1]]])}
    assert overlaps(asked | shaped | some, 8)[0, 0].tolist() == [0.25, 0, 1, 0]
    square = {"image": torch.zeros(1, 3, 16, 24)}
    assert overlaps(asked | square | some, 8)[0, 0].tolist() == [0.25, 0, 1, 0]


def test_a_patch_alone_is_pooled_as_an_image_of_one_patch(small: Small, pipeline: TextPipeline) -> None:
    vision = Learner.new(small("siglip"), pipeline).double().model.vision
    tokens = torch.randn(3, 5, vision.width).double()
    torch.testing.assert_close(vision.alone(tokens).flatten(0, 1), vision.pool(tokens.flatten(0, 1)[:, None]))


def plain_loss(learner: Learner, batch: Batch, objective: RegionPairs) -> tuple[Tensor, int]:
    """The equation, region by region, patch by patch."""
    images = learner.model.vision
    encoded = Encoded(learner.model, batch).image()
    areas = overlaps(batch, 8)
    found: list[tuple[Tensor, Tensor, int]] = []
    for b, k in (areas.sum(-1) > 0).nonzero().tolist():
        alone = [images.pool(token[None, None])[0] for token in encoded.tokens[b]]
        mean = sum(area * one for area, one in zip(areas[b, k], alone, strict=True))
        text = learner.model.text(batch["region_text"][b, k][None]).pooled[0]
        found.append((F.normalize(mean, dim=0), F.normalize(text, dim=0), int(batch["region_phrase"][b, k])))
    total = torch.zeros(1).double()
    for i, (x, _, phrase) in enumerate(found):
        for j, (_, y, other) in enumerate(found):
            if i == j or phrase != other:
                logit = objective.scale.exp() * (x @ y) + objective.bias
                total = total - F.logsigmoid(logit if i == j else -logit)
    return total, len(found)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_and_its_gradient_are_the_equations(
    name: str, small: Small, uneven: list[Visit], pipeline: TextPipeline
) -> None:
    recipe = made(small, name)
    batch = exact(collate(recipe, draw(recipe, uneven, pipeline), pipeline))
    first, last = (tuple(batch["has_region"].nonzero()[at].tolist()) for at in (0, -1))
    for field in ("region_text", "region_phrase"):  # two regions of one phrase, in different images
        batch[field][last] = batch[field][first]
    torch.manual_seed(0)
    learner = Learner.new(recipe, pipeline).double()
    objective = learner.objectives["region_pairs"]
    assert isinstance(objective, RegionPairs)
    objective.initialise(learner.model, 8, ())
    assert objective.bias.item() == pytest.approx(-np.log(7))
    ours = objective.compare(*objective.features(Encoded(learner.model, batch)))
    plain, count = plain_loss(learner, batch, objective)
    assert int(objective.live(batch)) == count and ("," in name or count == int(batch["has_region"].sum()))
    assert 4 < count < len({(b, k) for b in range(8) for k in range(4)}), "images without regions add nothing"
    weights = [objective.scale, objective.bias, *learner.model.vision.parameters(), *learner.model.text.parameters()]
    gradients = [
        torch.autograd.grad(loss, weights, materialize_grads=True, allow_unused=True) for loss in (ours, plain)
    ]
    gaps = [float((a - b).abs().max()) for a, b in zip(*gradients, strict=True)]
    assert ours.item() == pytest.approx(plain.item(), abs=1e-10) and max(gaps) < 1e-9
    assert max(float(one.abs().max()) for one in gradients[0]) > 0.1


def test_images_without_regions_give_nothing(small: Small, uneven: list[Visit], pipeline: TextPipeline) -> None:
    recipe = small("siglip", region_pairs=1.0)
    batch = exact(collate(recipe, draw(recipe, uneven[:4], pipeline), pipeline))
    torch.manual_seed(0)
    learner = Learner.new(recipe, pipeline).double()
    objective = learner.objectives["region_pairs"]
    assert isinstance(objective, RegionPairs)
    loss = objective.compare(*objective.features(Encoded(learner.model, batch)))
    loss.backward()
    assert loss.item() == 0 == int(objective.live(batch))
    assert all(not p.grad.any() for p in learner.parameters() if p.grad is not None)


def visit_of(*regions: tuple[tuple[int, int, int, int], str]) -> Visit:
    example = Rectangles(1).example(0)
    return Visit(example, example.image, tuple(Region(box, {"en": said}) for box, said in regions), None)


def test_boxes_of_several_phrases_come_once_and_equal_phrases_are_told(pipeline: TextPipeline) -> None:
    first, second, third = (0, 0, 8, 8), (8, 0, 16, 8), (0, 8, 9, 16)
    visit = visit_of((first, "a red square"), (first, "the square"), (second, "a red square"), (third, "a star"))
    several = replace(visit, regions=(*visit.regions, Region((1, 1, 9, 9), {"en": "two stars"}, n_boxes=2)))
    field, seen = RegionTexts(), set()
    for seed in range(20):
        batch = field.collate([field.draw(several, np.random.default_rng(seed), pipeline), []], pipeline)
        drawn = {tuple(box) for box in batch["region_box"][0, :3].int().tolist()}
        assert drawn == {first, second, third} and batch["has_region"].tolist() == [[True] * 3 + [False], [False] * 4]
        texts = [pipeline.text(ids) for ids in batch["region_text"][0, :3]]
        phrases = batch["region_phrase"][0, :3].tolist()
        assert len(set(texts)) == len(set(phrases)) == (2 if texts.count("a red square") == 2 else 3)
        seen.update(texts)
    assert seen == {"a red square", "the square", "a star"}
    few = {
        tuple(box)
        for seed in range(20)
        for box, _ in RegionTexts(1).draw(several, np.random.default_rng(seed), pipeline)
    }
    assert few == {first, second, third}, "another one from visit to visit"


def test_boxes_follow_crops_and_mirrors(pipeline: TextPipeline) -> None:
    frame, field = Frame(32, 0.3, flip=1.0), RegionTexts()
    found = 0
    for seed in range(30):
        example = Rectangles(seed + 1).example(seed)
        example = Example(example.image, example.captions, example.regions)
        visit = Visit.draw(example, frame, np.random.default_rng(seed), "en")
        batch = frame.batch([visit.image]) | field.collate(
            [field.draw(visit, np.random.default_rng(0), pipeline)], pipeline
        )
        if batch["has_region"][0, 0]:
            inside = overlaps(batch, 4)[0, 0].view(8, 8) == 1
            colour = torch.nn.functional.max_pool2d(visit.image.amax(0)[None].float(), 4)[0]
            assert bool((colour[inside] > 200).all()), "patches within the box show the rectangle"
            found += int(inside.any())
    assert found > 8


def test_an_image_tower_of_another_make_is_refused() -> None:
    networks: Any = SimpleNamespace(foreign=SimpleNamespace(vision={}))
    with pytest.raises(UserError, match="--region-pairs needs an OpenSigLIP image tower; leave out --vision"):
        RegionPairs().check(networks)


def test_a_run_that_was_cut_short_goes_on_bit_for_bit(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SHAPES, "tiny", SHAPE)
    settings: dict[str, Any] = {"size": "tiny", "resolution": 32, "region_pairs": 0.5, "batch_size": 8, "workers": 0}
    settings |= {"steps": 6, "save_every": 3, "held_out": 0, "precision": "fp32", "memory_check": False}
    settings |= {"data": folder, "vocabulary": 300}
    train("siglip", out=tmp_path / "straight", **settings)
    cut_short(4, lambda: train("siglip", out=tmp_path / "cut", **settings))
    train("siglip", out=tmp_path / "cut", resume=True, **settings)
    assert_same_end(tmp_path / "cut", tmp_path / "straight")
