"""Images and texts that grow while training: which step reads what, that towers are exact at each size, and runs."""

from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RECIPE, Run, Small, exact
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_plan import data, tiny  # noqa: F401 # a fixture
from test_resume import assert_same_end, cut_short
from torch import Tensor

from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.data.example import Source
from opensiglip.data.fields.frame import Frame, GrowingFrame
from opensiglip.data.fields.views import PatchMask, Views
from opensiglip.data.loader import DataPlan, Steps
from opensiglip.data.size_schedule import SizeSchedule
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.models.model import Model
from opensiglip.models.resize import resize_positions
from opensiglip.models.sizes import Architecture, CoCaShape, Shape
from opensiglip.models.towers import Text, Vision
from opensiglip.recipes import RECIPES, Recipe, build_recipe, find_recipe
from opensiglip.recipes.growing import check_growth, grown
from opensiglip.reports.curves import growth
from opensiglip.reports.run_page import signal_charts
from opensiglip.training.accumulate import accumulate
from opensiglip.training.curation.reference import same_view
from opensiglip.training.dry_run import dry_run
from opensiglip.training.learner import Learner, denominators
from opensiglip.training.planning.networks import meta_learner
from opensiglip.training.planning.plan import make_plan
from opensiglip.training.planning.step import Setting
from opensiglip.training.run import train
from opensiglip.types import Batch

SHAPE = Shape(width=32, depth=2, mlp=64, heads=2)
SIDES, LENGTHS = SizeSchedule((16, 32), (0.0, 0.5)), SizeSchedule((12, 48), (0.0, 0.75))


def test_a_schedule_says_the_size_of_each_step() -> None:
    schedule = SizeSchedule.parse("--resolution", "112@0, 160@.5,224@0.8")
    assert (schedule.sizes, schedule.starts, schedule.last) == ((112, 160, 224), (0.0, 0.5, 0.8), 224)
    assert [schedule.at(step / 10) for step in range(10)] == [112] * 5 + [160] * 3 + [224] * 2
    assert [schedule.at(share) for share in (0.4999, 0.7999, 0.9999)] == [112, 160, 224]
    assert schedule.describe("{} px") == "112 px up to 50% of training, then 160 px up to 80% of training, then 224 px"


@pytest.mark.parametrize(
    "text",
    ["", "112", "112@0,", "112@0.1,224@0.8", "224@0,112@0.8", "112@0,224@0.8,448@0.8", "112@0,224@1", "112@0,x@0.8"],
)
def test_whatever_is_no_schedule_gets_one_sentence(text: str) -> None:
    with pytest.raises(UserError, match=r"^--length '.*' is neither a number nor [^.]*below 1; give such as [^ ]*\.$"):
        SizeSchedule.parse("--length", text)


@given(st.text("0123456789@.,- x", max_size=30))
def test_no_text_makes_a_schedule_whose_sizes_shrink(text: str) -> None:
    try:
        schedule = SizeSchedule.parse("--resolution", text)
    except UserError:
        return
    assert list(schedule.sizes) == sorted(set(schedule.sizes)) and schedule.at(0) == schedule.sizes[0]
    assert schedule.at(1 - 1e-12) == schedule.last


def growing(recipe: Recipe) -> Recipe:
    return grown(recipe, SIDES, LENGTHS)


def plan(recipe: Recipe, scenes: Source, pipeline: TextPipeline, **changes: Any) -> DataPlan:
    given = {"sources": [scenes], "batch_size": 8, "seed": 3, "steps": 8} | changes
    return DataPlan(frame=recipe.frame, fields=recipe.fields, lengths=recipe.lengths, pipeline=pipeline, **given)


def test_each_step_reads_the_sizes_of_its_share_of_training(
    small: Small, scenes: Source, pipeline: TextPipeline
) -> None:
    recipe = growing(small("siglip2", distill_start=0.25))
    read, seen = Steps(plan(recipe, scenes, pipeline)), []
    for step in range(8):
        batch = read[step].parts[0]
        assert ("global" in batch) == ("mask_indices" in batch) == (step >= 2)
        views = [batch[view].shape[-1] for view in ("global", "local") if view in batch]
        seen.append((batch["image"].shape[-1], *views, batch["mask_indices"].shape[1] if views else 0))
        assert batch["text"].shape[1] == (12 if step < 6 else 48)
        assert batch["positions"].max() < (12 if step < 6 else 48)
        assert (batch["text"] == 1).sum(1).tolist() == [1] * 8, "a text that is cut short ends all the same"
    assert seen == [(16, 0)] * 2 + [(16, 16, 16, 2)] * 2 + [(32, 32, 16, 8)] * 4


def test_once_grown_a_step_reads_what_it_would_without(small: Small, scenes: Source, pipeline: TextPipeline) -> None:
    plain = small("siglip2")
    for step in (6, 7):
        some, others = (Steps(plan(one, scenes, pipeline))[step].parts[0] for one in (growing(plain), plain))
        assert some.keys() == others.keys()
        assert all(torch.equal(some[name], others[name]) for name in some)


def test_what_is_read_hangs_on_seed_and_step_alone(small: Small, scenes: Source, pipeline: TextPipeline) -> None:
    recipe = growing(small("siglip2", distill_start=0.0))
    whole = Steps(plan(recipe, scenes, pipeline))[1].parts[0]
    ranks = [Steps(plan(recipe, scenes, pipeline, rank=rank, ranks=2))[1].parts[0] for rank in (0, 1)]
    for name in ("image", "text", "global", "local", "mask_indices"):
        assert torch.equal(whole[name], torch.cat([rank[name] for rank in ranks]))
    assert whole["image"].shape[-1] == 16


def test_fields_that_hang_on_the_size_follow_it(small: Small) -> None:
    fields = growing(small("siglip2", distill_start=0.25)).fields
    spans = [(type(field), field.start, field.end) for field in fields if isinstance(field, Views | PatchMask)]
    forever = float("inf")
    assert spans == [(kind, *span) for kind in (Views, PatchMask) for span in ((0.25, 0.5), (0.5, forever))]
    late = growing(small("siglip2", distill_start=0.75)).fields
    assert [field.start for field in late if isinstance(field, Views)] == [0.75], "none of a size that is over"


def model(**changes: Any) -> Model:
    torch.manual_seed(0)
    return Model.new(Architecture(32, 8, 16, SHAPE, SHAPE, **changes), 20).double()


def test_a_smaller_image_is_read_as_by_a_tower_of_resized_positions() -> None:
    whole = model().vision
    assert isinstance(whole, Vision)
    table = whole.tower.embeddings.position_embedding.weight
    image = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    torch.manual_seed(0)
    few = Model.new(Architecture(16, 8, 16, SHAPE, SHAPE), 20).double().vision
    own = resize_positions(table, 2, 2).detach()
    few.load_state_dict(whole.state_dict() | {"tower.embeddings.position_embedding.weight": own})
    assert isinstance(few, Vision)
    for got, expected in zip(whole(image)[:2], few(image)[:2], strict=True):
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)
    whole(image).tokens.square().sum().backward()
    few(image).tokens.square().sum().backward()
    slope = few.tower.embeddings.position_embedding.weight.grad
    assert slope is not None and table.grad is not None
    # The gradient of the table is that of the small one, by the transpose of the resizing.
    eye = torch.eye(16, dtype=torch.float64)
    matrix = torch.stack([resize_positions(column[:, None], 2, 2)[:, 0] for column in eye], 1)  # [4, 16]
    torch.testing.assert_close(table.grad, matrix.T @ slope, atol=1e-10, rtol=0)
    assert (table.grad.abs().sum(1) > 0).all(), "every position learns from small images"


def test_a_shorter_text_has_the_first_positions_and_pools_at_the_last() -> None:
    text = model().text
    assert isinstance(text, Text)
    ids = torch.randint(0, 20, (3, 9))
    table = text.tower.embeddings.position_embedding.weight
    x = text.tower.embeddings.token_embedding(ids) + torch.cat([table[:8], table[15:]])
    hidden = text.tower.final_layer_norm(text.tower.encoder(inputs_embeds=x).last_hidden_state)
    assert torch.equal(text(ids).tokens, hidden) and torch.equal(text(ids).pooled, text.tower.head(hidden[:, -1]))
    full = torch.randint(0, 20, (3, 16))
    theirs = text.tower(input_ids=full)
    assert torch.equal(text(full).pooled, theirs.pooler_output), "a whole text is read as ever"


def test_cocas_class_token_keeps_its_position() -> None:
    made = model(decoder=SHAPE, coca=CoCaShape(4, 2, 32)).text
    assert made is not None
    with torch.no_grad():
        made.position[6:-1] = torch.nan  # type: ignore[index, operator]
    assert made(torch.randint(2, 20, (3, 5))).pooled.isfinite().all()


def test_the_decoders_positions_of_image_tokens_are_resized() -> None:
    decoder = model(decoder=SHAPE, image_positions=True).decoder
    assert decoder is not None and decoder.image_position is not None
    table = decoder.image_position
    assert decoder.places(torch.zeros(1, 16, 32)) is table
    assert torch.equal(decoder.places(torch.zeros(1, 4, 32)), resize_positions(table, 2, 2))


def outcome(recipe: Recipe, parts: list[Batch], pipeline: TextPipeline) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses and gradients of a step of freshly made networks."""
    torch.manual_seed(0)
    learner = Learner.new(replace(recipe, objectives=deepcopy(recipe.objectives)), pipeline).double()
    live = denominators(learner, parts)
    losses, _ = accumulate(learner, learner, parts, live, lambda loss: loss.backward(), lambda _: nullcontext())
    return losses, {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in ("lit", "captioner", "siglip2_naflex")])
def test_every_recipe_trains_on_small_images_and_parts_change_nothing(
    name: str, small: Small, scenes: Source, pipeline: TextPipeline
) -> None:
    late = {"distill_start": 0.0} if name == "siglip2" else {}
    recipe = growing(small(name, **late))
    if recipe.frame.pixels != 32:
        pytest.skip("a recipe of the tests with a size of its own")
    seen = [[exact(part) for part in Steps(plan(recipe, scenes, pipeline, parts=n))[0].parts] for n in (1, 4)]
    view = "image" if "image" in seen[0][0] else "global"
    assert seen[0][0][view].shape[-1] == 16
    whole, in_parts = (outcome(recipe, parts, pipeline) for parts in seen)
    for expected, got in zip(whole, in_parts, strict=True):
        assert got.keys() == expected.keys()
        assert max(float((got[key] - value).abs().max()) for key, value in expected.items()) < 1e-12
    shapes = [
        {key: value.shape for key, value in Learner.new(one, pipeline).state_dict().items()}
        for one in (growing(small(name, **late)), small(name, **late))
    ]
    assert shapes[0] == shapes[1]


def test_towers_of_one_size_are_refused_in_a_sentence() -> None:
    with pytest.raises(UserError, match=r"^--resolution: a NaFlex recipe .*; give one resolution, 64\.$"):
        build_recipe(RECIPES["siglip2_naflex"], {"size": "tiny", "resolution": "32@0,64@0.8"})
    with pytest.raises(UserError, match=r"^--resolution: an image tower of timm.* reads one size; give one number\.$"):
        check_growth(build_recipe(RECIPES["lit"], {"size": "tiny", "resolution": "32@0,64@0.8"}))
    with pytest.raises(UserError, match=r"^--resolution 30 is not a multiple of the patch size 8; try 24\.$"):
        build_recipe(RECIPES["siglip"], {"size": "tiny", "resolution": "30@0,64@0.8"})
    with pytest.raises(UserError, match=r"^--length 4 is out of range; give a number of at least 8"):
        build_recipe(RECIPES["siglip"], {"size": "tiny", "length": "4@0,64@0.8"})


def test_a_teacher_sees_images_at_its_own_size() -> None:
    assert same_view(Frame(32), Frame(32)) and not same_view(GrowingFrame(32, schedule=SIDES), Frame(32))


@pytest.fixture
def longer(tmp_path: Path) -> str:
    """The recipe of the other tests, with a length that can be told."""
    file = tmp_path / "longer.py"
    words = {
        "resolution: int = 32,": "resolution: int = 32, length: int = 64,",
        'size="tiny",': 'size="tiny", length=length,',
    }
    text = RECIPE
    for old, new in words.items():
        text = text.replace(old, new)
    file.write_text(text.replace("def small", "def longer"))
    return f"{file}:longer"


FLAGS: dict[str, Any] = {"resolution": "16@0,32@0.5", "length": "12@0,48@0.75", "distill_start": 0.25}


def test_a_run_cut_short_around_each_switch_goes_on_bit_for_bit(
    longer: str, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same: dict[str, Any] = {"data": [folder], "steps": 8, "batch_size": 8, "workers": 0, "held_out": 0}
    same |= {"precision": "fp32", "memory_check": False, "vocabulary": 300, "keep_tokens": 0.5} | FLAGS
    straight = tmp_path / "straight"
    train(longer, out=straight, save_every=4, **same)
    said = capsys.readouterr().out
    assert "images      16 × 16 pixels up to 50% of training, then 32 × 32 pixels\n" in said
    assert "length 12 up to 75% of training, then 48, tasks" in said
    for step in (4, 6):  # the first step of each size
        out = tmp_path / f"cut-{step}"
        cut_short(step, lambda out=out: train(longer, out=out, save_every=1, **same))  # type: ignore[misc]
        train(longer, out=out, save_every=1, resume=True, **same)
        assert_same_end(out, straight, 8)
    with pytest.raises(UserError, match="resolution: '16@0,32@0.5' before, 32 now"):
        train(longer, out=straight, resume=True, **same | {"resolution": 32})
    opened = Pretrained.open(str(straight))
    assert opened.model.architecture.resolution == 32 and opened.pipeline is not None
    assert opened.pipeline.policy.length == 48
    table = load_file(straight / "model" / "model.safetensors")["vision_model.embeddings.position_embedding.weight"]
    assert len(table) == 16, "of the last size"
    page = (straight / "report.html").read_text()
    assert "step 4 is where images of 32 × 32 pixels begin" in page and "step 6 is where texts of 48 tokens" in page


def test_a_larger_resolution_goes_on_from_a_run_that_grew(run: Run, tmp_path: Path) -> None:
    run(tmp_path / "small", steps=8, save_every=2, resolution="16@0,32@0.5", distill_start=1.0)
    before = tmp_path / "small" / "checkpoints" / "step-00000006"
    run(tmp_path / "large", steps=8, continue_from=str(before), resolution=64, distill_start=1.0)
    table = load_file(tmp_path / "large" / "model" / "model.safetensors")
    assert len(table["vision_model.embeddings.position_embedding.weight"]) == 64


def test_a_dry_run_says_the_tokens_of_each_stage(recipe: str, folder: str, tmp_path: Path) -> None:
    said = dry_run(
        recipe,
        data=[folder],
        out=tmp_path / "run",
        steps=10,
        batch_size=4,
        workers=0,
        held_out=0,
        vocabulary=300,
        keep_tokens=0.5,
        resolution="16@0,32@0.5",
    )
    stages = [line for line in said.splitlines() if line.startswith("stage")]
    assert [line.partition(":")[0].split()[2:] for line in stages] == [
        ["0", "to", "5"],
        ["5", "to", "8"],
        ["8", "to", "9"],
        ["9", "to", "10"],
    ]
    read = [line.split("; ")[1] for line in stages]
    assert read == [f"{count} image and 64 text tokens" for count in (2, 8, 8, 16)]
    assert all(" images/s)" in line for line in stages)


def test_a_plan_counts_the_tokens_of_each_size(data: Callable[[Recipe], DataPlan]) -> None:  # noqa: F811
    recipe = grown(tiny("siglip"), SizeSchedule((16, 32), (0, 0.8)), SizeSchedule((16, 32), (0, 0.8)))
    read = replace(data(recipe), lengths=recipe.lengths)
    made = make_plan(meta_learner(recipe, read.pipeline), read, Setting("cpu", "no"))
    assert [(stage.begin, stage.read) for stage in made.stages] == [
        (0.0, "4 image and 16 text tokens"),
        (0.8, "16 image and 32 text tokens"),
    ]
    few, all_ = (stage.flops()[0] for stage in made.stages)
    assert few["image tower, 1 x 16 px"] < 0.3 * all_["image tower, 1 x 32 px"]
    assert few["text tower"] < 0.55 * all_["text tower"]
    assert made.stages[0].memory.total < made.stages[1].memory.total


def test_the_report_marks_where_sizes_grow() -> None:
    rows = [{"step": step, "loss": 1.0, "resolution": 16 if step < 3 else 32, "length": 8} for step in range(6)]
    assert growth(rows) == {3: ["images of 32 × 32 pixels"]} and growth(rows[:3]) == {} and growth([]) == {}
    assert signal_charts(rows) == [], "a size is no sign of health"


def test_a_recipe_of_ones_own_takes_schedules_too(recipe: str) -> None:
    made = build_recipe(find_recipe(recipe), {"resolution": "16@0,32@0.5"})
    assert isinstance(made.frame, GrowingFrame) and made.frame.at(0.4) == Frame(16) and made.frame.at(0.5) == Frame(32)


def test_plain_numbers_leave_a_recipe_as_it_is() -> None:
    made = build_recipe(RECIPES["siglip"], {"size": "tiny", "resolution": 32, "length": 16})
    assert type(made.frame) is Frame and made.lengths is None
