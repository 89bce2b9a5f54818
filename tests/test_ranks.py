"""Several ranks, one gradient: data parallelism changes nothing but where the numbers are computed."""

import os
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from conftest import Small, collate, distinct_recipes, draw, exact, half_read
from forkserver import start_ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from opensiglip.data.fields.field import Visit
from opensiglip.data.size_schedule import SizeSchedule
from opensiglip.data.text import TextPipeline
from opensiglip.distributed import average
from opensiglip.optim import adamw
from opensiglip.recipes import Recipe
from opensiglip.recipes.growing import grown
from opensiglip.training.accumulate import accumulate
from opensiglip.training.learner import Learner, denominators
from opensiglip.types import Batch

RANKS, EXACT = 2, 1e-12
CAPTIONS = "siglip, captions of one image as positives"
KEPT = ("siglip2, half of the patches read", "siglip2_naflex, half of the patches read")
GROWING = "siglip2, small images and short texts"
NAMES = [*distinct_recipes(), CAPTIONS, *KEPT, GROWING]
Seen = dict[str, dict[str, Tensor]]


@dataclass
class Case:
    """What one comparison needs in every process."""

    recipe: Recipe
    pipeline: TextPipeline
    whole: Batch
    slices: dict[int, list[list[Batch]]]  # number of parts -> each rank's parts

    def learner(self) -> Learner:
        torch.manual_seed(0)
        return Learner.new(replace(self.recipe, objectives=deepcopy(self.recipe.objectives)), self.pipeline).double()


def plainly(loss: Tensor) -> None:
    loss.backward()


def measured(step: nn.Module, learner: Learner, parts: list[Batch]) -> Seen:
    """Losses and gradients of one step."""
    learner.zero_grad()
    wrapped = isinstance(step, DistributedDataParallel)
    no_sync: Any = (lambda module: module.no_sync()) if wrapped else (lambda module: nullcontext())
    losses, notes = accumulate(step, learner, parts, denominators(learner, parts), plainly, no_sync)
    grads = {name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None}
    return {"losses": dict(losses), "grads": grads, "notes": notes}


def work(rank: int, folder: str, cases: dict[str, Case]) -> None:
    """One rank's part in all comparisons; what it saw goes to a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    seen: dict[str, Any] = {}
    for name, case in cases.items():
        learner = case.learner()
        step = DistributedDataParallel(learner)
        for parts, slices in case.slices.items():
            seen[f"{name} {parts}"] = one = measured(step, learner, slices[rank])
            for loss in one["losses"].values():
                dist.all_reduce(loss)
                loss /= RANKS
        optimizer = adamw(learner, 1e-2, 0.1)
        for _ in range(3):
            notes = measured(step, learner, case.slices[2][rank])["notes"]
            optimizer.step()
            learner.after_step(average(notes), 0.9)
        seen[f"{name} weights"] = learner.state_dict()
    torch.save(seen, f"{folder}/rank{rank}")
    dist.barrier()
    os._exit(0)  # all is written: gloo's threads may wait for ever, at the end, for a rank that has gone


@pytest.fixture(scope="module")
def cases(small: Small, uneven: list[Visit], pipeline: TextPipeline) -> dict[str, Case]:
    made = {}
    for name in NAMES:
        recipe = small("siglip", multi_positive=True) if name == CAPTIONS else small(name.partition(",")[0])
        recipe = half_read(recipe) if name in KEPT else recipe
        grouped = [replace(visit, group=place % 3) for place, visit in enumerate(uneven)]  # of an image on both ranks
        read, seen = pipeline, grouped if name == CAPTIONS else uneven
        if name == GROWING:  # a step before they grow, of networks for the last sizes
            recipe = grown(small("siglip2", distill_start=0.0), SizeSchedule((16, 32), (0.0, 0.5)), None)
            recipe = replace(recipe, fields=[field for field in recipe.fields if field.drawn_at(0.0)])
            read, frame = pipeline.with_length(12), recipe.frame.at(0.0)
            seen = [replace(visit, image=frame.apply(visit.example, None)[0]) for visit in uneven]
        drawn = draw(recipe, seen, read)

        def some(
            first: int, count: int, recipe: Recipe = recipe, drawn: Any = drawn, read: TextPipeline = read
        ) -> Batch:
            return exact(collate(recipe, drawn[first : first + count], read))

        slices = {
            parts: [[some(4 * r + i * 4 // parts, 4 // parts) for i in range(parts)] for r in (0, 1)]
            for parts in (1, 2)
        }
        made[name] = Case(recipe, pipeline, some(0, 8), slices)
    return made


@pytest.fixture(scope="module")
def ranks(cases: dict[str, Case], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    start_ranks(work, (str(folder), cases), RANKS)
    return [torch.load(folder / f"rank{rank}") for rank in range(RANKS)]


def test_the_slices_are_as_uneven_as_meant(cases: dict[str, Case]) -> None:
    per_part = [[int(part["sequences"].sum()) for part in parts] for parts in cases["siglip2"].slices[2]]
    assert per_part[0][1] == 0 and sum(per_part[0]) != sum(per_part[1])
    assert not cases["siglip2"].whole["has_text"].all()
    assert 0 in cases["siglip2"].whole["sequences"]


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_give_the_loss_and_gradient_of_one(
    cases: dict[str, Case], ranks: list[dict[str, Any]], name: str, parts: int
) -> None:
    learner = cases[name].learner()
    alone = measured(learner, learner, [cases[name].whole])
    for rank in ranks:
        together = rank[f"{name} {parts}"]
        for kind in ("losses", "grads"):
            assert together[kind].keys() == alone[kind].keys()
            gaps = {key: float((together[kind][key] - value).abs().max()) for key, value in alone[kind].items()}
            assert max(gaps.values()) < EXACT, gaps
    assert max(float(grad.abs().max()) for grad in alone["grads"].values()) > 0.1  # there was something to compare


@pytest.mark.parametrize("name", NAMES)
def test_ranks_hold_the_same_weights_after_three_steps(
    cases: dict[str, Case], ranks: list[dict[str, Any]], name: str
) -> None:
    first, second = (rank[f"{name} weights"] for rank in ranks)
    assert all(torch.equal(first[key], second[key]) for key in first)
    learner = cases[name].learner()
    before = learner.state_dict()
    moved = {key for key, value in first.items() if not torch.equal(value, before[key])}
    trained = {key for key, p in learner.named_parameters() if p.requires_grad and key.startswith("model.")}
    assert len(moved & trained) > 0.9 * len(trained)
    frozen = {f"model.{key}" for key, p in learner.model.named_parameters() if not p.requires_grad}
    only_training = {key for key in first if not key.startswith("model.")}
    assert only_training - frozen <= moved, "teacher, heads and their averages, centres, whatever objectives learn"
