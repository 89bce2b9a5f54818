"""NaFlex: SigLIP 2's resize, patches and padding, equal to transformers' and without a trace of the padding."""

from collections import Counter
from dataclasses import replace
from functools import cache
from math import isqrt
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fields import bounds
from toys import SHAPE, Rectangles, rectangle
from transformers import Siglip2ImageProcessor, Siglip2Model

from opensiglip.data.boxes import BoxFormat
from opensiglip.data.example import Example, Region
from opensiglip.data.fields.captions import Captions
from opensiglip.data.fields.field import Images, Texts
from opensiglip.data.fields.naflex import BUDGETS, NaFlex, pack, patchify, resized
from opensiglip.data.loader import DataPlan, Steps, to_device
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.models.model import Model
from opensiglip.models.sizes import Architecture
from opensiglip.recipes import siglip2_naflex
from opensiglip.types import Patches, pixels

PATCH, SIDE = 4, 5  # of a position table of 5 x 5
CLOSE = 1e-5


@cache
def naflex() -> Model:
    torch.manual_seed(0)
    model = Model.new(Architecture(SIDE * PATCH, PATCH, 12, SHAPE, SHAPE, SHAPE, naflex=True), 96).eval()
    tower: Any = model.vision.tower
    torch.nn.init.normal_(tower.head.layernorm.bias)
    torch.nn.init.normal_(tower.embeddings.position_embedding.weight)
    return model


def random_patches(shapes: list[tuple[int, int]], length: int, seed: int = 0) -> Patches:
    """Patches of noise in [-1, 1], the padding too."""
    generator = torch.Generator().manual_seed(seed)
    images = [torch.rand(3, h * PATCH, w * PATCH, generator=generator) * 2 - 1 for h, w in shapes]
    packed = pack(images, PATCH, length)
    noise = torch.randn(packed.values.shape, generator=generator)
    return packed._replace(values=torch.where(packed.valid[..., None], packed.values, noise))


# The resize rule


def test_five_hundred_images_are_cut_as_transformers_cuts_them() -> None:
    rng = np.random.default_rng(0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(500):
        height, width = (int(side) for side in np.exp(rng.uniform(np.log(3), np.log(250), 2)))
        patch, budget = int(rng.choice([4, 7, 14, 16])), int(rng.choice([9, 32, 64, 100]))
        image = torch.randint(256, (3, height, width), dtype=torch.uint8, generator=generator)
        theirs = Siglip2ImageProcessor(patch_size=patch, max_num_patches=budget)(image, return_tensors="pt")
        frame = NaFlex(patch, budget)
        batch = to_device(frame.batch([frame.apply(Example(image, ()), None)[0]]), torch.device("cpu"))
        ours = Patches.of(batch, "image")
        assert torch.equal(ours.shapes, theirs["spatial_shapes"]), (height, width, patch, budget)
        count = ours.valid.shape[1]
        assert int(ours.valid.sum()) == int(theirs["pixel_attention_mask"].sum())
        assert (ours.values[~ours.valid] == -1).all(), "zeros of uint8"
        gap = (ours.values[:, :budget] - theirs["pixel_values"][:, :count])[ours.valid[:, :budget]].abs().max()
        assert gap < 1e-6, (height, width, patch, budget)


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([8, 14, 16]), st.integers(1, 1024))
def test_the_budget_is_kept_and_the_aspect_ratio_within_a_patch(
    height: int, width: int, patch: int, budget: int
) -> None:
    down, across = resized(height, width, patch, budget)
    assert down % patch == across % patch == 0 and patch**2 <= down * across <= budget * patch**2
    # Some scale takes the image to within the last patch of each side; one patch is the least.
    lowest = max((down - patch) / height, (across - patch) / width)
    highest = min(down / height, across / width)
    assert lowest < highest * (1 + 1e-9) or min(down, across) == patch


def test_patches_go_row_by_row_and_pixels_by_row_column_colour() -> None:
    image = torch.arange(3 * 4 * 6).reshape(3, 4, 6)
    patches = patchify(image, 2)
    assert patches.shape == (6, 12)
    assert patches[4].tolist() == [int(image[c, y, x]) for y in (2, 3) for x in (2, 3) for c in range(3)]


@pytest.mark.parametrize(("width", "height"), [(200, 50), (50, 200), (90, 90)])
def test_boxes_follow_the_resize(width: int, height: int) -> None:
    box = (20, 10, 44, 40)
    example = Example(rectangle(box, width, height), (), (Region(box, {"en": "it"}),))
    image, regions = NaFlex(8, 64).apply(example, None)
    assert abs(image.shape[-1] / image.shape[-2] / (width / height) - 1) < 0.3
    assert all(abs(a - b) <= 1 for a, b in zip(bounds(image), regions[0].bbox, strict=True))


# The network


@torch.no_grad()
def test_positions_of_a_batch_are_the_librarys_one_by_one() -> None:
    shapes = torch.tensor([[1, 24], [12, 2], [3, 7], [7, 3], [4, 6], [2, 2], [1, 1], [1, 2]])
    vision: Any = naflex().vision
    embeddings = vision.tower.embeddings
    valid = torch.arange(24) < shapes.prod(1, keepdim=True)
    ours = vision.places(Patches(torch.empty(len(shapes), 24, 0), shapes, valid))
    table = embeddings.position_embedding.weight.unflatten(0, (SIDE, SIDE))
    theirs = embeddings.resize_positional_embeddings(table, shapes, 24)
    assert (ours - theirs)[valid].abs().max() < CLOSE
    square = torch.ones(1, SIDE**2, dtype=torch.bool)
    same = vision.places(Patches(torch.empty(1, SIDE**2, 0), torch.tensor([[SIDE, SIDE]]), square))
    torch.testing.assert_close(same[0], table.flatten(0, 1), rtol=0, atol=1e-6)


@torch.no_grad()
def test_positions_of_an_image_one_patch_wide_are_resized_along_both_sides() -> None:
    """torch 2.12 resizes to a width of 1 wrongly, unless one side is done after the other; so transformers does too."""
    vision: Any = naflex().vision
    table = vision.tower.embeddings.position_embedding.weight.unflatten(0, (SIDE, SIDE))
    tall = F.interpolate(table.permute(2, 0, 1)[None], (20, SIDE), mode="bilinear", antialias=True)
    line = F.interpolate(tall.mT, (1, 20), mode="bilinear", antialias=True)[0, :, 0].T
    ours = vision.places(Patches(torch.empty(1, 20, 0), torch.tensor([[20, 1]]), torch.ones(1, 20, dtype=torch.bool)))
    assert (ours[0] - line).abs().max() < CLOSE


@torch.no_grad()
def test_the_tower_is_transformers_own() -> None:
    model, image = naflex(), random_patches([(3, 7), (5, 4), (1, 20), (2, 2)], 24)
    ours = model.vision(image)
    theirs = Siglip2Model(model.host[0].config)
    theirs.load_state_dict(model.host[0].state_dict())
    theirs.set_attn_implementation("sdpa")
    found = theirs.eval().vision_model(image.values, image.valid.int(), image.shapes)
    assert (ours.pooled - found.pooler_output).abs().max() < CLOSE
    assert (ours.tokens - found.last_hidden_state)[image.valid].abs().max() < CLOSE
    assert ours.pooled.std(0).max() > 0.01, "the images differ, so this compared something"


@pytest.mark.parametrize(("height", "width"), [(SIDE, SIDE), (9, 7), (3, 4), (6, 2)])
@torch.no_grad()
def test_an_image_whole_or_in_patches_is_the_same(height: int, width: int) -> None:
    """Positions resized for all images at once, bilinearly, and for images of one size."""
    vision = naflex().vision
    image = torch.rand(2, 3, height * PATCH, width * PATCH) * 2 - 1
    whole, cut = vision(image), vision(pack(list(image), PATCH, 64))
    torch.testing.assert_close(cut.pooled, whole.pooled, rtol=0, atol=CLOSE)
    torch.testing.assert_close(cut.tokens[:, : height * width], whole.tokens, rtol=0, atol=CLOSE)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(0, 12))
@torch.no_grad()
def test_padding_added_or_permuted_leaves_no_trace(seed: int, more: int) -> None:
    model, plain = naflex(), random_patches([(3, 4), (2, 7), (1, 2)], 14, seed)
    generator = torch.Generator().manual_seed(seed)
    length = 14 + more
    values = 9 * torch.randn(3, length, plain.values.shape[-1], generator=generator)
    valid = torch.zeros(3, length, dtype=torch.bool)
    for row, count in enumerate(plain.valid.sum(1).tolist()):
        places = torch.randperm(length, generator=generator)[:count].sort()[0]
        values[row, places], valid[row, places] = plain.values[row, :count], True
    features, other = model.vision(plain), model.vision(Patches(values, plain.shapes, valid))
    assert (features.pooled - other.pooled).abs().max() < CLOSE
    assert (features.tokens[plain.valid] - other.tokens[valid]).abs().max() < CLOSE
    assert torch.isfinite(other.tokens).all()
    assert model.decoder is not None
    row = [torch.randint(96, (3, 6), generator=generator), torch.arange(6).expand(3, 6), *torch.zeros(2, 3, 6).long()]
    row[3] = row[3].bool()
    read, again = (model.decoder(*row, some.tokens, some.valid) for some in (features, other))
    assert (read - again).abs().max() < CLOSE


def test_padding_gets_no_gradient_and_gives_none_that_is_not_finite() -> None:
    model, image = naflex(), random_patches([(3, 4), (1, 1)], 20)
    values = image.values.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model.vision(image._replace(values=values)).pooled.square().sum(), values)
    assert torch.isfinite(slope).all() and slope[image.valid].any()
    assert not slope[~image.valid].any()


# Budgets of steps


def test_rounds_give_each_budget_as_many_examples_and_read_the_stream_without_a_gap() -> None:
    frame, at, orders = NaFlex(16, 256), 0, set()
    for number in range(20):
        seen = Counter[int]()
        steps = [frame.step_slice(3, number * 6 + place, 32) for place in range(6)]
        for part in steps:
            assert part.first == at and isinstance(part.frame, NaFlex)
            at += part.size
            assert part.size == (16 if part.frame.budget == 1024 else 32)
            seen[part.frame.budget] += part.size
        assert seen == dict.fromkeys(BUDGETS, 32)
        orders.add(tuple(part.frame for part in steps))
    assert len(orders) > 15
    assert frame.step_slice(3, 77, 32) == frame.step_slice(3, 77, 32)
    assert [frame.step_slice(4, s, 32) for s in range(6)] != [frame.step_slice(3, s, 32) for s in range(6)]


def examples_of(plan: DataPlan, step: int) -> list[tuple[Any, ...]]:
    """The examples of a step, without their padding."""
    found = []
    for part in Steps(plan)[step].parts:
        image = pixels(part, "image")
        assert isinstance(image, Patches)
        for index in range(len(image.values)):
            row = image.values[index][image.valid[index]]
            found.append((image.shapes[index].tolist(), row.numpy().tobytes(), part["text"][index].tolist()))
    return found


@pytest.mark.parametrize("step", range(4))
def test_a_steps_batch_is_the_same_on_any_ranks_and_in_any_parts(step: int, pipeline: TextPipeline) -> None:
    frame = NaFlex(8, 16, (8, 16, 30), 0.7)
    fields = (Images(frame), Texts(), Captions(("cap", "aref"), boxes=BoxFormat()))

    def plan(**changes: Any) -> DataPlan:
        given = {"batch_size": 8, "seed": 3} | changes
        return DataPlan(sources=[Rectangles(17)], frame=frame, fields=fields, pipeline=pipeline, **given)

    whole = examples_of(plan(), step)
    budget = plan().step_slice(step).frame
    assert len(whole) == plan().step_slice(step).size and isinstance(budget, NaFlex)
    assert all(rows * columns <= budget.budget for (rows, columns), _, _ in whole)
    assert whole == [row for rank in range(2) for row in examples_of(plan(rank=rank, ranks=2, parts=2), step)]


def test_a_run_that_continues_reads_the_stream_on(pipeline: TextPipeline) -> None:
    before = DataPlan(sources=[], frame=NaFlex(8, 16), fields=[], pipeline=pipeline, batch_size=8, seed=3, steps=100)
    after = replace(before, begin=90, stretch=4.5)
    assert after.step_slice(90).first == 90 * 8 and after.step_slice(96).first == 90 * 8 + 5 * 8
    assert after.step_slice(91).frame == before.step_slice(1).frame, "its rounds begin with it"
    assert [after.schedule_step(step) for step in (90, 99, 135)] == [90, 92, 100]


def test_the_recipe_is_the_papers() -> None:
    recipe = siglip2_naflex(size="B/16")
    frame = recipe.frame
    assert isinstance(frame, NaFlex) and frame.budgets == (128, 256, 576, 784, 1024) and frame.budget == 256
    assert recipe.continuation.share == 0.9 and recipe.continuation.stretch == pytest.approx(3.75 * 6 / 5)
    assert [objective.name for objective in recipe.objectives] == ["sigmoid", "caption"]
    tiny = siglip2_naflex(size="tiny").frame
    assert isinstance(tiny, NaFlex) and tiny.budgets == (32, 64, 144, 196, 256)
    for wrong in ((0, 4), (16, 16)):
        with pytest.raises(UserError, match="--budgets"):
            siglip2_naflex(size="tiny", budgets=wrong)


def test_drawings_are_as_large_as_the_largest_budget_asks() -> None:
    assert siglip2_naflex(size="B/16").frame.pixels == isqrt(1024) * 16
