"""A stage that never begins costs nothing: no heads, no teacher, no field; and a run may begin it later."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from opensiglip.checkpoints.run_folder import RunFolder, learner_of
from opensiglip.data.fields.views import PatchMask, Views
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.models.heads import Head
from opensiglip.optim import adamw
from opensiglip.recipes import RECIPES, Recipe, build_recipe, find_recipe
from opensiglip.training import checkpoint, run
from opensiglip.training.continued import Origin, take_over
from opensiglip.training.idle_terms import without_terms
from opensiglip.training.learner import Learner
from opensiglip.training.log import read_lines
from opensiglip.training.longer_texts import ShortTexts
from opensiglip.training.planning.networks import meta_learner

TAUGHT = {"local_to_global", "masked_patches"}
Made = tuple[Learner, torch.optim.Optimizer]


def made(recipe: str, pipeline: TextPipeline, start: float, seed: int = 1) -> Made:
    """A learner of the small SigLIP 2 whose last stage begins at `start`, and an optimizer."""
    torch.manual_seed(seed)
    learner = Learner.new(build_recipe(find_recipe(recipe), {"distill_start": start}), pipeline)
    return learner, adamw(learner, 1e-3, 0.1)


def train(learner: Learner, optimizer: torch.optim.Optimizer, progress: float) -> None:
    """A step, with a gradient at whatever is trained."""
    learner.activate(progress)
    for parameter in learner.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()


def save(folder: Path, learner: Learner, optimizer: torch.optim.Optimizer, progress: float = 0.5) -> Path:
    state = {"progress": progress, "skipped_steps": 0, "read": 8, "skipped_examples": {}}
    return checkpoint.save(RunFolder(folder), 1, *checkpoint.tensors(learner, optimizer), state, lambda path: None)


def fields_of(recipe: Recipe) -> set[type]:
    return {type(field) for field in recipe.fields} & {Views, PatchMask}


def test_siglip2_makes_no_heads_for_a_stage_that_never_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a head was made")

    monkeypatch.setattr(Head, "__init__", refuse)
    recipe = build_recipe(RECIPES["siglip2"], {"size": "tiny", "distill_start": 1.0})
    assert [term.name for term in recipe.objectives] == ["sigmoid", "caption"] and not fields_of(recipe)
    with pytest.raises(AssertionError, match="a head was made"):
        build_recipe(RECIPES["siglip2"], {"size": "tiny", "distill_start": 0.99})


def test_a_users_recipe_loses_what_never_begins(recipe: str, pipeline: TextPipeline) -> None:
    assert {term.name for term in find_recipe(recipe)(distill_start=1.0).objectives} > TAUGHT, "it makes them itself"
    learner, _ = made(recipe, pipeline, 1.0)
    assert set(learner.objectives) == {"sigmoid", "caption"} and learner.teacher is None
    assert all(name.startswith("model.") for name in learner.state_dict())
    taught, _ = made(recipe, pipeline, 0.99)
    assert set(taught.objectives) > TAUGHT and taught.teacher is not None


def test_a_plan_counts_the_networks_alone(pipeline: TextPipeline) -> None:
    keywords = {"size": "tiny", "resolution": 32, "prototypes": 16}
    never, late = (
        meta_learner(build_recipe(RECIPES["siglip2"], keywords | {"distill_start": start}), pipeline)
        for start in (1.0, 0.99)
    )
    inside = sum(parameter.numel() for parameter in never.model.parameters())
    assert sum(parameter.numel() for parameter in never.parameters()) == inside
    assert sum(parameter.numel() for parameter in late.parameters()) > 1.4 * inside, "teacher and heads"


def test_steps_before_a_stage_are_the_same_bit_for_bit_whether_it_will_begin(folder: str, tmp_path: Path) -> None:
    small: dict[str, Any] = {"size": "32x2x64x2/8", "resolution": 32, "prototypes": 16, "vocabulary": 300}
    small |= {"batch_size": 8, "workers": 0, "held_out": 0, "precision": "fp32", "memory_check": False, "steps": 4}
    for name, start in (("late", 0.75), ("never", 1.0)):
        run.train("siglip2", data=[folder], out=tmp_path / name, distill_start=start, **small)
    late, never = (read_lines(tmp_path / name / "metrics.jsonl") for name in ("late", "never"))
    assert len(never) == 4 and "loss/local_to_global" in late[3] and "loss/local_to_global" not in never[3]
    for before, row in zip(late[:3], never, strict=False):
        assert all(before[name] == row[name] for name in ("loss", "loss/sigmoid", "loss/caption", "grad_norm"))
    stored = load_file(learner_of(RunFolder(tmp_path / "never").checkpoint(4)))
    assert all(name.startswith("model.") for name in stored)


@pytest.mark.parametrize("start", [0.8, 0.2])
def test_a_stage_that_a_checkpoint_lacks_begins_fresh(
    start: float, recipe: str, pipeline: TextPipeline, tmp_path: Path
) -> None:
    """Where a run goes on from another, and where one is resumed with --changed."""
    before = made(recipe, pipeline, 1.0)
    train(*before, 0.5)
    place = save(tmp_path, *before)
    for way in ("continued", "resumed"):
        learner, optimizer = made(recipe, pipeline, start, seed=2)
        heads = deepcopy(learner.objectives.state_dict())
        if way == "continued":
            resized, new = take_over(Origin(tmp_path, place, 0.5), learner, optimizer, ShortTexts(pipeline, []))
            assert not resized
        else:
            _, new = checkpoint.load(place, learner, optimizer)
        assert new == TAUGHT
        now, old = learner.state_dict(), before[0].state_dict()
        assert all(torch.equal(now[name], tensor) for name, tensor in old.items())
        assert all(torch.equal(now[f"objectives.{name}"], tensor) for name, tensor in heads.items())
        assert learner.teacher is not None
        copies = zip(learner.teacher.parameters(), learner.model.vision.parameters(), strict=True)
        assert all(torch.equal(copy, own) for copy, own in copies), "of the tower that was taken over"
        trained = {id(parameter) for parameter in learner.model.parameters()}
        assert optimizer.state and all(id(parameter) in trained for parameter in optimizer.state)


def test_an_older_checkpoint_with_heads_that_were_never_trained_is_resumed(
    recipe: str, pipeline: TextPipeline, tmp_path: Path
) -> None:
    """Up to version 0.2 runs built and saved them."""
    older = made(recipe, pipeline, 0.8)
    train(*older, 0.5)
    place = save(tmp_path, *older)
    assert {name.split(".")[0] for name in load_file(learner_of(place))} == {"model", "objectives", "teacher"}
    learner, optimizer = made(recipe, pipeline, 1.0, seed=2)
    state, new = checkpoint.load(place, learner, optimizer)
    assert state["progress"] == 0.5 and not new
    old = older[0].state_dict()
    assert all(torch.equal(tensor, old[name]) for name, tensor in learner.state_dict().items())


def test_heads_that_were_trained_are_not_lost(recipe: str, pipeline: TextPipeline, tmp_path: Path) -> None:
    older = made(recipe, pipeline, 0.8)
    train(*older, 0.9)
    place = save(tmp_path, *older)
    with pytest.raises(UserError, match="has objectives.local_to_global.* which these networks have not"):
        checkpoint.load(place, *made(recipe, pipeline, 1.0))


def test_a_new_term_that_is_not_taught_leaves_the_teacher_of_others(recipe: str, pipeline: TextPipeline) -> None:
    learner, _ = made(recipe, pipeline, 0.2)
    for names, stays in (({"sigmoid"}, True), ({"masked_patches"}, True), (TAUGHT, False)):
        assert any(name.startswith("teacher.") for name in without_terms(learner, names)) == stays


def test_a_teacher_that_teaches_already_is_not_copied_again(recipe: str, pipeline: TextPipeline) -> None:
    learner, _ = made(recipe, pipeline, 0.2)
    learner.activate(0.5)
    assert learner.teacher is not None
    with torch.no_grad():
        for parameter in learner.teacher.parameters():
            parameter.add_(1)
    before = deepcopy(learner.teacher.state_dict())
    learner.start_teachers({"masked_patches"})
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.teacher.state_dict().items())
    learner.start_teachers(TAUGHT)
    copies = zip(learner.teacher.parameters(), learner.model.vision.parameters(), strict=True)
    assert all(torch.equal(copy, own) for copy, own in copies)


def test_a_teacher_alone_is_neither_left_out_nor_made(recipe: str, pipeline: TextPipeline, tmp_path: Path) -> None:
    """A run whose heads alone have averages has no teacher: that is another recipe, not a stage that never began."""
    whole, alone = made(recipe, pipeline, 0.2), made(recipe, pipeline, 0.2)
    for objective in alone[0].objectives.values():
        if objective.teacher is not None:
            objective.teacher = replace(objective.teacher, heads_alone=True)
    other = Learner(alone[0].model, [*alone[0].objectives.values()])  # type: ignore[arg-type]
    assert other.teacher is None
    two = other, adamw(other, 1e-3, 0.1)
    for first, second, wrong in ((whole, two, "has teacher"), (two, whole, "lacks teacher")):
        train(*first, 0.5)
        place = save(tmp_path / wrong[:3], *first)
        with pytest.raises(UserError, match=wrong):
            checkpoint.load(place, *second)
