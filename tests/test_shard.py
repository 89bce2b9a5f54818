"""Sharded ranks compute what one rank computes, and their checkpoints are everyone's."""

import os
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import Small, collate, distinct_recipes, draw, exact
from torch import Tensor

from opensiglip.checkpoints.run_folder import RunFolder
from opensiglip.data.fields.field import Visit
from opensiglip.data.text import TextPipeline
from opensiglip.distributed import average, meeting
from opensiglip.optim import adamw
from opensiglip.recipes import Recipe
from opensiglip.training import checkpoint
from opensiglip.training.accumulate import accumulate
from opensiglip.training.learner import Learner, denominators
from opensiglip.training.sharding import hollow, shard, whole
from opensiglip.types import Batch

CLIP, EXACT = 0.5, 1e-12
NAMES = ("siglip", "siglip2", "coca")
GROUPS = {2: 2, 4: 1}  # ranks: parts that each encodes its share of the batch in
CPU = torch.device("cpu")


@dataclass
class Case:
    """A recipe and what its eight examples give."""

    recipe: Recipe
    pipeline: TextPipeline
    drawn: Any

    def batch(self, first: int, count: int) -> Batch:
        """Examples first to first + count, in float64."""
        return exact(collate(self.recipe, self.drawn[first : first + count], self.pipeline))

    def learner(self) -> Learner:
        torch.manual_seed(0)
        objectives = [deepcopy(one) for one in self.recipe.objectives]
        return Learner.new(replace(self.recipe, objectives=objectives), self.pipeline).double()


def run(case: Case, rank: int = 0, ranks: int = 1, parts: int = 1, *, sharded: bool = False) -> dict[str, Any]:
    """A step at 0 % of training and one at 80 %, as the loop takes them; what they left."""
    learner = case.learner()
    if sharded:
        shard(learner, CPU)
    optimizer = adamw(learner, 1e-3, 0.1)
    each = 8 // ranks // parts
    batches = [case.batch(rank * 8 // ranks + part * each, each) for part in range(parts)]
    gradients: list[dict[str, Tensor]] = []
    begun: set[str] = set()
    for progress in (0.0, 0.8):
        new = learner.activate(progress, freeze=not sharded) - begun
        learner.start_teachers(new)
        begun |= new
        live = denominators(learner, batches)
        _, notes = accumulate(learner, learner, batches, live, Tensor.backward, lambda _: nullcontext())
        found = {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}
        norm = whole(torch.nn.utils.get_total_norm(found.values()))
        gradients.append({name: local(x).clone() for name, x in found.items()} | {"norm": norm[None]})
        torch.nn.utils.clip_grads_with_norm_([p for p in learner.parameters() if p.grad is not None], CLIP, norm)
        optimizer.step()
        learner.after_step(average(notes), progress)
        optimizer.zero_grad()
    return {"first": gradients[0], "second": gradients[1], **slices(learner, optimizer)}


def slices(learner: Learner, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """What this rank holds of weights and moments."""
    moments = {
        f"{name}/{key}": local(value)
        for name, parameter in learner.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }
    return {"weights": {name: local(x) for name, x in learner.state_dict().items()}, "moments": moments}


def local(x: Any) -> Tensor:
    return x.detach().to_local() if hasattr(x, "to_local") else x.detach()


def gaps(whole: dict[str, Any], held: dict[str, Any], rank: int, ranks: int) -> dict[str, float]:
    """By kind, the largest difference of what a rank holds from its rows of the whole tensors; the names are equal."""
    found = {}
    for kind, tensors in held.items():
        assert tensors.keys() == whole[kind].keys()
        found[kind] = 0.0
        for name, x in tensors.items():
            rows = [x] if x.shape == whole[kind][name].shape else whole[kind][name].chunk(ranks)
            mine = whole[kind][name] if len(rows) == 1 else rows[rank] if rank < len(rows) else whole[kind][name][:0]
            found[kind] = max([found[kind], *(x - mine).abs().flatten().tolist()])
    return found


@pytest.fixture(scope="module")
def make(small: Small, uneven: list[Visit], pipeline: TextPipeline) -> Callable[[str], Case]:
    def case(name: str) -> Case:
        torch.manual_seed(1)
        recipe = small(name)
        return Case(recipe, pipeline, draw(recipe, uneven, pipeline))

    return case


def work(rank: int, ranks: int, folder: Path, cases: dict[str, Case], saved: Path) -> None:
    """One rank's part in everything: it trains, and reads each checkpoint; rank 0 writes down what it saw."""
    torch.set_num_threads(1)
    with meeting(folder / f"meeting{ranks}", rank, ranks):
        seen: dict[str, Any] = {}
        for name, case in cases.items():
            seen[name] = run(case, rank, ranks, GROUPS[ranks], sharded=True)
        learner = cases["siglip"].learner()
        skeleton = hollow(learner.model, "meta")
        shard(learner, CPU)
        optimizer = adamw(learner, 1e-3, 0.1)
        checkpoint.load(saved, learner, optimizer)
        seen["read"] = slices(learner, optimizer)
        seen["overflow"] = overflow(learner, optimizer, rank)
        if ranks == 2:
            seen["written"] = checkpoint.tensors(learner, optimizer)
            model = hollow(skeleton, CPU)
            model.load_state_dict({name[6:]: x for name, x in seen["written"][0].items() if name.startswith("model.")})
            seen["exported"] = dict(model.host[0].state_dict())
        torch.save(seen, folder / f"{ranks} ranks, {rank}")
        dist.barrier()
        os._exit(0)  # all is written: gloo's threads may wait for ever, at the end, for a rank that has gone


def overflow(learner: Learner, optimizer: torch.optim.Optimizer, rank: int) -> tuple[float, float]:
    """The loss scale after a gradient of which the last rows of rank 1 alone are infinite, and that gradient's norm."""
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.ones(()))
    for parameter in learner.parameters():
        parameter.grad = torch.zeros_like(parameter)
    if rank == 1:
        local(learner.model.vision.tower.encoder.layers[0].mlp.fc1.weight.grad)[-1, -1] = torch.inf
    scaler.unscale_(optimizer)
    norm = whole(torch.nn.utils.get_total_norm([p.grad for p in learner.parameters() if p.grad is not None]))
    scaler.update()
    return scaler.get_scale(), float(norm)


@pytest.fixture(scope="module")
def cases(make: Callable[[str], Case]) -> dict[str, Case]:
    return {name: make(name) for name in NAMES}


@pytest.fixture(scope="module")
def alone(cases: dict[str, Case]) -> dict[str, dict[str, Any]]:
    return {name: run(case) for name, case in cases.items()}


@pytest.fixture(scope="module")
def sharded(
    cases: dict[str, Case], alone: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[int, list[dict[str, Any]]]:
    """What each rank of each group saw."""
    folder = tmp_path_factory.mktemp("shards")
    state = {"progress": 0.8, "skipped_steps": 0, "read": 16, "skipped_examples": {}}
    one = alone["siglip"]
    saved = checkpoint.save(RunFolder(folder / "run"), 2, one["weights"], one["moments"], state, lambda _: None)
    seen = {}
    for ranks in GROUPS:
        mp.spawn(work, (ranks, folder, cases, saved), nprocs=ranks, daemon=True)
        seen[ranks] = [torch.load(folder / f"{ranks} ranks, {rank}") for rank in range(ranks)]
    return seen


@pytest.mark.parametrize("name", distinct_recipes())
def test_a_recipe_of_each_kind_can_be_sharded(name: str, make: Callable[[str], Case], tmp_path: Path) -> None:
    case = make(name)
    with meeting(tmp_path / "meeting", 0, 1):
        one = run(case, sharded=True)
    assert max(gaps(run(case), one, 0, 1).values()) < EXACT


@pytest.mark.parametrize("ranks", GROUPS)
@pytest.mark.parametrize("name", NAMES)
def test_sharded_ranks_give_the_gradients_and_weights_of_one(
    alone: dict[str, Any], sharded: dict[int, list[dict[str, Any]]], name: str, ranks: int
) -> None:
    """Before the switch and after it; accumulated, clipped, with the EMA teacher."""
    assert float(alone[name]["first"]["norm"]) > CLIP
    if name == "siglip2":
        late = alone[name]["second"].keys() - alone[name]["first"].keys()
        assert {"objectives.masked_patches.token", "objectives.local_to_global.head.prototypes"} <= late
    for rank, seen in enumerate(sharded[ranks]):
        found = gaps(alone[name], seen[name], rank, ranks)
        assert max(found.values()) < EXACT, found
    held = [sum(x.numel() for x in seen[name]["moments"].values()) for seen in sharded[ranks]]
    assert max(held) < 1.1 * sum(x.numel() for x in alone[name]["moments"].values()) / ranks


@pytest.mark.parametrize("ranks", GROUPS)
def test_sharded_ranks_read_the_checkpoint_of_one_process(
    alone: dict[str, Any], sharded: dict[int, list[dict[str, Any]]], ranks: int
) -> None:
    for rank, seen in enumerate(sharded[ranks]):
        assert max(gaps(alone["siglip"], seen["read"], rank, ranks).values()) == 0


def test_sharded_ranks_write_what_one_process_would_and_export_its_model(
    alone: dict[str, Any], sharded: dict[int, list[dict[str, Any]]]
) -> None:
    for seen in sharded[2]:
        for found, kind in zip(seen["written"], ("weights", "moments"), strict=True):
            assert found.keys() == alone["siglip"][kind].keys()
            assert all(torch.equal(x.flatten(), alone["siglip"][kind][name].flatten()) for name, x in found.items())
        weights = alone["siglip"]["weights"]
        layers = {name: x for name, x in seen["exported"].items() if name.startswith("vision_model.encoder")}
        assert layers and all(torch.equal(x, weights[f"model.vision.tower.{name[13:]}"]) for name, x in layers.items())
        assert torch.equal(seen["exported"]["logit_scale"], weights["model.logit_scale"])


@pytest.mark.parametrize("ranks", GROUPS)
def test_a_scaled_gradient_that_overflows_in_one_shard_halves_the_scale_of_all(
    sharded: dict[int, list[dict[str, Any]]], ranks: int
) -> None:
    assert [seen["overflow"] for seen in sharded[ranks]] == [(2.0, torch.inf)] * ranks
