"""Sharded ranks compute what one rank computes, and their checkpoints are everyone's."""

import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from conftest import Small, collate, distinct_recipes, draw, exact, half_read
from forkserver import start_ranks
from safetensors.torch import load_file
from torch import Tensor

from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.checkpoints.run_folder import RunFolder
from opensiglip.data.boxes import BoxFormat
from opensiglip.data.fields.field import Visit
from opensiglip.data.loader import to_device
from opensiglip.data.text import TextPipeline
from opensiglip.distributed import average, meeting
from opensiglip.errors import UserError
from opensiglip.models.model import Model
from opensiglip.optim import adamw
from opensiglip.recipes import Recipe, find_recipe
from opensiglip.training import checkpoint
from opensiglip.training.accumulate import accumulate
from opensiglip.training.learner import Learner, denominators
from opensiglip.training.log import read_lines
from opensiglip.training.run import train
from opensiglip.training.sharding import hollow, shard, whole
from opensiglip.training.start import set_trainable
from opensiglip.types import Batch

CLIP, EXACT, SINGLE = 0.5, 1e-12, 1e-6
KEPT = "siglip2, half of the patches read"
TUNED, FLOAT32 = "siglip2, checkpointed, LoRA", "siglip2, float32"
NAMES = ("siglip", "siglip2", "coca", TUNED)
GROUPS = {2: 2, 4: 1}  # ranks: parts that each encodes its share of the batch in
TAKEN = (*NAMES, FLOAT32)
CPU = torch.device("cpu")
Resumed = partial[dict[str, Any]]


@dataclass
class Case:
    """A recipe and what its eight examples give."""

    recipe: Recipe
    pipeline: TextPipeline
    drawn: Any
    dtype: torch.dtype = torch.float64
    tuned: bool = False  # by LoRA, checkpointed
    stages: tuple[float, ...] = (0.0, 0.8)  # of training, a step each

    def batch(self, first: int, count: int) -> Batch:
        """Examples first to first + count."""
        batch = collate(self.recipe, self.drawn[first : first + count], self.pipeline)
        return exact(batch) if self.dtype == torch.float64 else to_device(batch, CPU)

    def learner(self) -> Learner:
        torch.manual_seed(0)
        networks = replace(self.recipe.architecture, pad_id=self.pipeline.policy.pad_id)
        model = Model.new(networks, len(self.pipeline))
        if self.tuned:
            set_trainable(model, None, rank=2)
            for name, parameter in model.named_parameters():
                if "lora_B" in name:  # they start at zero, so those before them get no gradient
                    torch.nn.init.normal_(parameter, std=0.1)
            model.checkpoint_activations()
        objectives = [deepcopy(one) for one in self.recipe.objectives]
        return Learner.of(model, replace(self.recipe, objectives=objectives), self.pipeline).to(self.dtype)


def run(case: Case, rank: int = 0, ranks: int = 1, parts: int = 1, *, sharded: bool = False) -> dict[str, Any]:
    """A step of each stage, as the loop takes them; what they left."""
    learner = case.learner()
    if sharded:
        shard(learner, CPU)
    optimizer = adamw(learner, 1e-3, 0.1)
    each = 8 // ranks // parts
    batches = [case.batch(rank * 8 // ranks + part * each, each) for part in range(parts)]
    gradients: list[dict[str, Tensor]] = []
    begun: set[str] = set()
    for progress in case.stages:
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
    return {"first": gradients[0], "last": gradients[-1], **slices(learner, optimizer)}


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
        recipe = small(name.partition(",")[0])
        recipe = half_read(recipe) if name == KEPT else recipe
        plain = Case(recipe, pipeline, draw(recipe, uneven, pipeline), tuned=name == TUNED)
        return replace(plain, dtype=torch.float32, stages=(0.8,)) if name == FLOAT32 else plain

    return case


def work(rank: int, ranks: int, folder: Path, cases: dict[str, Case], saved: Path, resumed: Resumed) -> None:
    """One rank's part in everything: it trains, reads checkpoints, resumes a run; it writes down what it saw."""
    torch.set_num_threads(1)
    with meeting(folder / f"meeting{ranks}", rank, ranks):
        seen: dict[str, Any] = {}
        for name in TAKEN:
            seen[name] = run(cases[name], rank, ranks, GROUPS[ranks], sharded=True)
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
        if ranks == 2:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
            resumed(shard=True)
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
    return {name: make(name) for name in (*NAMES, FLOAT32)}


@pytest.fixture(scope="module")
def alone(cases: dict[str, Case]) -> dict[str, dict[str, Any]]:
    return {name: run(case) for name, case in cases.items()}


@pytest.fixture(scope="module")
def straight(recipe: str, folder: str, pipeline: TextPipeline, tmp_path_factory: pytest.TempPathFactory) -> Resumed:
    """A run of one process that nothing happens to, as it was after its first step; resumed where this is called."""
    root = tmp_path_factory.mktemp("whole")
    networks = replace(find_recipe(recipe)().architecture, pad_id=pipeline.policy.pad_id)
    start = Pretrained.of(Model.new(networks, len(pipeline)), pipeline, name="start", boxes=BoxFormat())
    start.save(root / "start")
    flags: dict[str, Any] = {"steps": 3, "save_every": 1, "keep_last": 3, "eval_every": 1, "held_out": 4, "workers": 0}
    flags |= {"batch_size": 8, "precision": "fp32", "memory_check": False, "distill_start": 0.5}
    flags |= {"checkpointing": True, "lora": 2, "init": str(root / "start")}
    train(recipe, data=[folder], out=root / "one", **flags)
    cut(root / "one", root / "two", 1)
    return partial(train, recipe, data=[folder], out=root / "two", resume=True, **flags)


def cut(run: Path, copy: Path, step: int) -> None:
    """A copy of a run as it was after so many steps."""
    shutil.copytree(run, copy)
    for file in (copy / "checkpoints").glob("step-*"):
        if int(file.name[5:]) > step:
            shutil.rmtree(file)
    shutil.rmtree(copy / "model")


@pytest.fixture(scope="module")
def sharded(
    cases: dict[str, Case], alone: dict[str, Any], straight: Resumed, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, list[dict[str, Any]]]:
    """What each rank of each group saw."""
    folder = tmp_path_factory.mktemp("shards")
    state = {"progress": 0.8, "skipped_steps": 0, "read": 16, "skipped_examples": {}}
    one = alone["siglip"]
    saved = checkpoint.save(RunFolder(folder / "run"), 2, one["weights"], one["moments"], state, lambda _: None)
    seen = {}
    for ranks in GROUPS:
        start_ranks(work, (ranks, folder, cases, saved, straight), ranks)
        seen[ranks] = [torch.load(folder / f"{ranks} ranks, {rank}") for rank in range(ranks)]
    return seen


@pytest.mark.parametrize("name", [*distinct_recipes(), KEPT])
def test_a_recipe_of_each_kind_can_be_sharded(name: str, make: Callable[[str], Case], tmp_path: Path) -> None:
    case = make(name)
    with meeting(tmp_path / "meeting", 0, 1):
        if name == "self_critical":  # ranks would wait for one another's shards while they generate
            with pytest.raises(UserError, match="--shard and --cider-weight can't be combined; leave one out"):
                run(case, sharded=True)
            return
        one = run(case, sharded=True)
    assert max(gaps(run(case), one, 0, 1).values()) < EXACT


@pytest.mark.parametrize(("name", "ranks"), [(name, ranks) for ranks in GROUPS for name in TAKEN if name != FLOAT32])
def test_sharded_ranks_give_the_gradients_and_weights_of_one(
    alone: dict[str, Any], sharded: dict[int, list[dict[str, Any]]], name: str, ranks: int
) -> None:
    """Before the switch and after it; accumulated, clipped, with the EMA teacher."""
    assert float(alone[name]["first"]["norm"]) > CLIP
    if name.startswith("siglip2"):
        late = alone[name]["last"].keys() - alone[name]["first"].keys()
        assert {"objectives.masked_patches.token", "objectives.local_to_global.head.prototypes"} <= late
    for rank, seen in enumerate(sharded[ranks]):
        found = gaps(alone[name], seen[name], rank, ranks)
        assert max(found.values()) < EXACT, found
    held = [sum(x.numel() for x in seen[name]["moments"].values()) for seen in sharded[ranks]]
    assert max(held) < 1.1 * sum(x.numel() for x in alone[name]["moments"].values()) / ranks


@pytest.mark.parametrize("ranks", GROUPS)
def test_sharded_ranks_give_the_gradient_of_one_in_float32_to_1e_6(
    alone: dict[str, Any], sharded: dict[int, list[dict[str, Any]]], ranks: int
) -> None:
    for rank, seen in enumerate(sharded[ranks]):
        found = gaps(alone[FLOAT32], seen[FLOAT32], rank, ranks)
        assert found["last"] < SINGLE * float(alone[FLOAT32]["last"]["norm"]), found


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


@pytest.mark.usefixtures("sharded")
def test_a_run_that_is_resumed_sharded_and_then_whole_exports_the_model_of_one_process(straight: Resumed) -> None:
    """Tuned by LoRA, with activation checkpointing and evaluation after each step; the last of three is taught."""
    two = straight.keywords["out"]
    one, three = two.with_name("one"), two.with_name("three")
    cut(two, three, 2)
    straight(out=three)
    weights, *others = (load_file(run / "model" / "model.safetensors") for run in (one, two, three))
    for found in others:
        assert found.keys() == weights.keys()
        assert max(float((x - weights[name]).abs().max()) for name, x in found.items()) < 1e-5
    plain, *logs = (read_lines(run / "metrics.jsonl") for run in (one, two, three))
    assert any("eval/retrieval/image_to_text_r1" in row for row in plain)
    for rows in logs:
        assert [row.keys() for row in rows] == [row.keys() for row in plain]
        losses = ([row["loss"] for row in log if "loss" in row] for log in (rows, plain))
        assert next(losses) == pytest.approx(next(losses), rel=1e-4)


@pytest.mark.parametrize("ranks", GROUPS)
def test_a_scaled_gradient_that_overflows_in_one_shard_halves_the_scale_of_all(
    sharded: dict[int, list[dict[str, Any]]], ranks: int
) -> None:
    assert [seen["overflow"] for seen in sharded[ranks]] == [(2.0, torch.inf)] * ranks
