"""Token dropping: which patches are read, that the tower reads just those, and that a run of it is exact."""

from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from conftest import Run, Small, collate, draw, exact, half_read
from hypothesis import given, settings
from hypothesis import strategies as st
from test_plan import data, real_step, tiny  # noqa: F401 # a fixture
from test_resume import assert_same_end, cut_short
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from toys import Rectangles
from transformers import CLIPVisionConfig, CLIPVisionModel

from opensiglip.data.example import Source
from opensiglip.data.fields.field import Field, Images, Texts, Visit
from opensiglip.data.fields.frame import Frame, Geometry
from opensiglip.data.fields.kept_tokens import MASKS, KeptTokens, block, grid
from opensiglip.data.fields.naflex import NaFlex, pack
from opensiglip.data.loader import DataPlan, Steps
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.models.coca import ClipVision
from opensiglip.models.model import Model
from opensiglip.models.sizes import Architecture, Shape
from opensiglip.models.towers import Vision
from opensiglip.recipes import RECIPES, Recipe
from opensiglip.recipes.kept_tokens import drop_tokens
from opensiglip.training.accumulate import accumulate
from opensiglip.training.config import TrainConfig
from opensiglip.training.dry_run import dry_run
from opensiglip.training.learner import Learner, denominators
from opensiglip.training.planning.networks import meta_learner
from opensiglip.training.planning.plan import make_plan
from opensiglip.training.planning.shapes import batch_shapes
from opensiglip.training.planning.step import Setting, fake_step
from opensiglip.training.run import train
from opensiglip.types import Batch

REFUSED = {"lit", "captioner", "tasks", "pali"}  # of timm, or about all of an image
SHAPE = Shape(width=32, depth=2, mlp=64, heads=2)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(MASKS)),
    st.integers(1, 20),
    st.integers(1, 20),
    st.floats(0.01, 1),
    st.integers(0, 2**32 - 1),
)
def test_exactly_the_share_of_any_grid_is_kept_in_order(
    mask: str, rows: int, columns: int, share: float, seed: int
) -> None:
    field = KeptTokens(share, 4, mask=mask, views=3, end=0.9)
    visit = Visit(None, torch.zeros(3, rows * 4, columns * 4, dtype=torch.uint8), (), None)  # type: ignore[arg-type]
    kept = field.draw(visit, np.random.default_rng(seed), None)  # type: ignore[arg-type]
    assert kept.shape == (3, max(1, round(share * rows * columns)))
    assert (np.diff(kept, axis=1) > 0).all() and kept.min() >= 0 and kept.max() < rows * columns


@pytest.mark.parametrize("mask", ["random", "grid"])
def test_every_patch_is_as_likely_to_be_kept(mask: str) -> None:
    rng = np.random.default_rng(0)
    counts = np.bincount(np.concatenate([MASKS[mask](4, 4, 6, rng) for _ in range(4000)]), minlength=16)
    assert abs(counts / 4000 - 6 / 16).max() < 0.04


def test_a_block_lies_together_and_a_grid_lies_apart() -> None:
    rng, corners = np.random.default_rng(0), set[tuple[int, int]]()
    for _ in range(400):
        y, x = np.divmod(block(8, 12, 24, rng), 12)
        assert (y.max() - y.min() + 1, x.max() - x.min() + 1) == (4, 6)
        corners.add((int(y.min()), int(x.min())))
    assert corners == {(top, left) for top in range(5) for left in range(7)}, "at every place"
    for _ in range(20):
        quarter = np.zeros((8, 12), bool)
        quarter.ravel()[grid(8, 12, 24, rng)] = True
        assert (quarter.reshape(4, 2, 6, 2).sum((1, 3)) == 1).all()  # one of each 2 x 2
        half = np.zeros((8, 12), bool)
        half.ravel()[grid(8, 12, 48, rng)] = True
        assert (half[1:] != half[:-1]).all() and (half[:, 1:] != half[:, :-1]).all()  # a chequerboard


def test_each_view_of_an_image_has_a_draw_of_its_own() -> None:
    visit = Visit(None, torch.zeros(3, 32, 32, dtype=torch.uint8), (), None)  # type: ignore[arg-type]
    one, other = KeptTokens(0.5, 4, views=2, end=0.9).draw(visit, np.random.default_rng(0), None)  # type: ignore[arg-type]
    assert one.tolist() != other.tolist()


def plan(pipeline: TextPipeline, frame: Geometry, mask: str = "random", **changes: Any) -> DataPlan:
    fields = [Images(frame), Texts(), KeptTokens(0.5, 8, mask=mask, end=0.9)]
    given = {"sources": [Rectangles(17)], "batch_size": 8, "seed": 3, "fields": fields, "steps": 10} | changes
    return DataPlan(frame=frame, pipeline=pipeline, **given)


def kept_of(plan: DataPlan, step: int) -> list[list[int]]:
    """The patches of each of a step's images, without padding."""
    rows = [row for part in Steps(plan)[step].parts for row in part["image_kept"][:, 0]]
    return [row[row >= 0].tolist() for row in rows]


@pytest.mark.parametrize("frame", [Frame(32), NaFlex(8, 16, (8, 16, 30), 0.7)], ids=["square", "naflex"])
def test_what_is_kept_hangs_on_seed_and_step_alone(frame: Geometry, pipeline: TextPipeline) -> None:
    whole = kept_of(plan(pipeline, frame), 2)  # of NaFlex, one whose images differ in patches
    parts = [row for rank in range(2) for row in kept_of(plan(pipeline, frame, rank=rank, ranks=2, parts=2), 2)]
    assert whole == parts and len({tuple(row) for row in whole}) > 1
    assert whole != kept_of(plan(pipeline, frame), 1) and whole != kept_of(plan(pipeline, frame, seed=4), 2)
    for row, (rows, columns) in zip(whole, shapes_of(plan(pipeline, frame), 2), strict=True):
        assert len(row) == round(0.5 * rows * columns) and max(row) < rows * columns


def shapes_of(plan: DataPlan, step: int) -> list[list[int]]:
    batch = Steps(plan)[step].parts[0]
    return batch["image_shapes"].tolist() if "image_shapes" in batch else [[4, 4]] * len(batch["image"])


def test_nothing_else_of_a_batch_changes_and_the_tail_has_no_such_field(pipeline: TextPipeline) -> None:
    dropping = plan(pipeline, Frame(32))
    without = replace(dropping, fields=dropping.fields[:2])
    for step, more in {3: {"image_kept"}, 8: {"image_kept"}, 9: set()}.items():
        some, all_ = Steps(dropping)[step].parts[0], Steps(without)[step].parts[0]
        assert some.keys() - all_.keys() == more
        assert all(torch.equal(some[name], all_[name]) for name in all_)


def tower(naflex: bool = False) -> Vision:
    torch.manual_seed(0)
    vision = Model.new(Architecture(32, 8, 8, SHAPE, SHAPE, naflex=naflex), 20).double().vision
    assert isinstance(vision, Vision)
    return vision


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_kept_tokens_are_those_of_an_image_whose_other_patches_nothing_attends_to() -> None:
    vision, image = tower(), images(2)
    kept = torch.stack(
        [torch.randperm(16, generator=torch.Generator().manual_seed(s))[:6].sort().values for s in (1, 2)]
    )
    got = vision(image, kept=kept)
    seen = torch.zeros(2, 16, dtype=torch.bool).scatter(1, kept, True)
    x = vision.patches(image) + vision.positions(4, 4)
    hidden = vision.tower.encoder(inputs_embeds=x, attention_mask=seen[:, None, None]).last_hidden_state
    tokens = vision.tower.post_layernorm(hidden)
    assert got.tokens.shape == (2, 6, 32) and got.valid is None and got.pooled is not None
    torch.testing.assert_close(got.tokens, tokens[seen].view(2, 6, 32), atol=1e-12, rtol=0)
    torch.testing.assert_close(got.pooled, vision.pool(tokens, valid=seen), atol=1e-12, rtol=0)


def test_images_of_their_own_aspect_ratio_read_what_they_would_alone() -> None:
    vision = tower(naflex=True)
    pictures = [torch.randn(3, h, w, dtype=torch.float64) for h, w in ((32, 16), (16, 40), (24, 24))]
    rows = [[0, 3, 5, 7], [1, 4, 6, 7, 9], [0, 8]]
    kept = torch.full((3, 16), -1)
    for place, row in enumerate(rows):
        kept[place, : len(row)] = torch.tensor(row)
    together = vision(pack(pictures, 8, 16), kept=kept)
    assert together.valid is not None and together.valid.sum(1).tolist() == [4, 5, 2]
    for place, (picture, row) in enumerate(zip(pictures, rows, strict=True)):
        alone = vision(picture[None], kept=torch.tensor([row]))
        torch.testing.assert_close(together.pooled[place], alone.pooled[0], atol=1e-12, rtol=0)
        torch.testing.assert_close(together.tokens[place, : len(row)], alone.tokens[0], atol=1e-12, rtol=0)


def test_clips_tower_keeps_its_class_token() -> None:
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    torch.manual_seed(0)
    vision, image = ClipVision(CLIPVisionModel(config).double(), normed=True), images(2)
    kept = torch.tensor([[0, 3, 9], [4, 5, 15]])
    seen = torch.zeros(2, 17, dtype=torch.bool).scatter(1, kept + 1, True).index_fill(1, torch.tensor([0]), True)
    x = vision.tower.pre_layrnorm(vision.tower.embeddings(((image + 1) / 2 - vision.mean) / vision.std))
    mask = torch.zeros(2, 1, 17, 17, dtype=torch.float64).masked_fill(~seen[:, None, None], -torch.inf)
    tokens = vision.tower.post_layernorm(vision.tower.encoder(inputs_embeds=x, attention_mask=mask).last_hidden_state)
    torch.testing.assert_close(vision(image, kept=kept).tokens, tokens[seen].view(2, 4, 32), atol=1e-12, rtol=0)


def outcome(recipe: Recipe, parts: list[Batch], pipeline: TextPipeline) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses and gradients of a step of freshly made networks."""
    torch.manual_seed(0)
    learner = Learner.new(replace(recipe, objectives=deepcopy(recipe.objectives)), pipeline).double()
    if learner.model.decoder is not None:  # at its zeros no gradient reaches the tower
        torch.nn.init.normal_(learner.model.decoder.vocabulary.weight, std=0.1)
    live = denominators(learner, parts)
    losses, _ = accumulate(learner, learner, parts, live, lambda loss: loss.backward(), lambda _: nullcontext())
    return losses, {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}


def batches(recipe: Recipe, visits: list[Visit], pipeline: TextPipeline, count: int = 1) -> list[Batch]:
    drawn = draw(recipe, visits, pipeline)
    size = len(drawn) // count
    return [exact(collate(recipe, drawn[at : at + size], pipeline)) for at in range(0, len(drawn), size)]


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in REFUSED])
def test_every_recipe_trains_on_kept_tokens_and_parts_change_nothing(
    name: str, small: Small, uneven: list[Visit], pipeline: TextPipeline
) -> None:
    recipe = half_read(small(name))
    assert any(isinstance(field, KeptTokens) for field in recipe.fields)
    losses, grads = outcome(recipe, batches(recipe, uneven, pipeline), pipeline)
    assert max(float(grad.abs().max()) for name, grad in grads.items() if "vision" in name) > 1e-3
    in_parts = outcome(recipe, batches(recipe, uneven, pipeline, 4), pipeline)
    for expected, got in zip((losses, grads), in_parts, strict=True):
        assert got.keys() == expected.keys()
        assert max(float((got[key] - value).abs().max()) for key, value in expected.items()) < 1e-12


@pytest.mark.parametrize("name", ["siglip", "siglip2", "silc", "siglip2_naflex", "coca"])
def test_a_share_of_one_is_none_dropped_to_the_last_bit(
    name: str, small: Small, visits: list[Visit], pipeline: TextPipeline
) -> None:
    recipe = small(name)
    assert drop_tokens(recipe, 1.0) is recipe
    [with_field] = batches(replace(recipe, fields=[*recipe.fields, *kept_fields(recipe)]), visits[:4], pipeline)
    plain = {field: values for field, values in with_field.items() if not field.endswith("_kept")}
    assert len(plain) == len(with_field) - 1
    for whole, got in zip(outcome(recipe, [plain], pipeline), outcome(recipe, [with_field], pipeline), strict=True):
        assert all(torch.equal(whole[key], got[key]) for key in whole)


def kept_fields(recipe: Recipe) -> list[Field]:
    """A field that keeps all, as a share just below one gives it."""
    found = [field for field in drop_tokens(recipe, 1 - 1e-9, "random", 0.9).fields if isinstance(field, KeptTokens)]
    return list(found)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_recipes_that_read_all_of_an_image_say_so(name: str) -> None:
    with pytest.raises(UserError, match=r"^--keep-tokens: [^.]*(\.[^ .][^.]*)*\.$"):
        drop_tokens(RECIPES[name](size="tiny"), 0.5)


def test_a_decoder_with_a_position_for_each_image_token_reads_all_of_them() -> None:
    recipe = RECIPES["locca"](size="tiny", image_positions=True)
    assert drop_tokens(recipe, 1.0) is recipe
    with pytest.raises(UserError, match=r"^--keep-tokens: --image-positions gives each token .*; leave one out\.$"):
        drop_tokens(recipe, 0.5)


def test_boxes_are_learned_from_whole_images(small: Small, scenes: Source, pipeline: TextPipeline) -> None:
    recipe = drop_tokens(small("locca"), 0.5, None, 0.5)
    read = plan(pipeline, recipe.frame, sources=[scenes], fields=recipe.fields, steps=4)
    texts = []
    for step in range(4):
        batch = Steps(read)[step].parts[0]
        texts.append(batch["sequences"].tolist())
        assert ("image_kept" in batch) == (step < 2)
    assert texts == [[1] * 8] * 2 + [[3] * 8] * 2
    with pytest.raises(UserError, match=r"--full-from 1: boxes"):
        drop_tokens(small("locca"), 0.5, None, 1.0)
    assert drop_tokens(small("cappa"), 0.5, None, 1.0).fields[-1].end == 1


def test_flags_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    for flags in ({"token_mask": "grid"}, {"full_from": 0.5}):
        with pytest.raises(UserError, match="are for runs with --keep-tokens"):
            train("siglip", data=["scenes"], out=tmp_path / "run", size="tiny", **flags)
    with pytest.raises(UserError, match="'star' is unknown; it is random, block, grid"):
        train("siglip", data=["scenes"], out=tmp_path / "run", size="tiny", keep_tokens=0.5, token_mask="star")
    with pytest.raises(UserError, match="--keep-tokens 0 is out of range"):
        TrainConfig(data=("scenes",), out=tmp_path, keep_tokens=0)
    assert not (tmp_path / "run").exists()


def test_the_flag_names_the_masks_that_there_are() -> None:
    words, _ = get_args(get_type_hints(TrainConfig)["token_mask"])
    assert get_args(words) == tuple(MASKS)


def test_a_run_cut_short_around_the_tail_goes_on_bit_for_bit(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags: dict[str, Any] = {"keep_tokens": 0.5, "token_mask": "block", "full_from": 0.5, "distill_start": 0.25}
    straight, out = tmp_path / "straight", tmp_path / "cut"
    run(straight, steps=8, **flags)
    assert "tokens      0.5 of an image's patches, block, up to 50% of training\n" in capsys.readouterr().out
    cut_short(4, lambda: run(out, steps=8, save_every=1, **flags))  # the first step of the tail
    run(out, steps=8, save_every=1, resume=True, **flags)
    assert_same_end(out, straight, 8)
    with pytest.raises(UserError, match=r"keep_tokens: 0\.5 before, 1\.0 now"):
        run(out, steps=8, resume=True, distill_start=0.25)


def test_a_dry_run_times_the_tail_as_a_stage(recipe: str, folder: str, tmp_path: Path) -> None:
    said = dry_run(
        recipe,
        data=[folder],
        out=tmp_path / "run",
        steps=10,
        batch_size=4,
        workers=0,
        held_out=0,
        precision="fp32",
        vocabulary=300,
        keep_tokens=0.5,
    )
    assert [line.partition(":")[0] for line in said.splitlines() if line.startswith("stage")] == [
        "stage       steps 0 to 8",
        "stage       steps 8 to 9",
        "stage       steps 9 to 10",
    ]
    assert "image_kept int64 [4, 1, 8]" in said


def test_a_plan_counts_the_tokens_that_are_read(data: Callable[[Recipe], DataPlan]) -> None:  # noqa: F811
    recipe = drop_tokens(tiny("siglip2"), 0.5, None, 0.9)
    made = make_plan(meta_learner(recipe, data(recipe).pipeline), data(recipe), Setting("cpu", "no"))
    assert [stage.begin for stage in made.stages] == [0.0, 0.8, 0.9]
    few, _, all_ = (stage.flops()[0] for stage in made.stages)
    assert few["image tower, 1 x 32 px, 8 tokens"] < 0.55 * all_["image tower, 1 x 32 px"]
    assert made.stages[0].memory.total < made.stages[1].memory.total < made.stages[2].memory.total
    plain = tiny("siglip")
    memories = []
    for share in (1.0, 0.5):
        kept = replace(plain, fields=[*plain.fields, KeptTokens(share, 8, end=1.0)])
        plan = data(kept)
        step = fake_step(meta_learner(kept, plan.pipeline), batch_shapes(plan, 0.0)[0], 0.0, Setting("cpu", "no"))
        with FlopCounterMode(display=False) as counter:
            real_step(kept, plan)()
        assert step.flops.total == pytest.approx(counter.get_total_flops(), rel=0.1)
        memories.append(step.memory.activations)
    assert memories[1] < 0.9 * memories[0]


@pytest.mark.parametrize("name", ["siglip2", "siglip2_naflex"])
def test_checkpointing_leaves_the_gradient(
    name: str, small: Small, visits: list[Visit], pipeline: TextPipeline
) -> None:
    recipe = half_read(small(name))
    [batch] = batches(recipe, visits[:4], pipeline)
    grads = []
    for again in (False, True):
        torch.manual_seed(0)
        learner = Learner.new(replace(recipe, objectives=deepcopy(recipe.objectives)), pipeline).double().train()
        if again:
            learner.model.checkpoint_activations()
        losses, _ = learner(batch, denominators(learner, [batch]))
        losses["loss"].backward()
        grads.append({key: p.grad for key, p in learner.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    assert max(float((grads[1][key] - value).abs().max()) for key, value in grads[0].items()) < 1e-12
