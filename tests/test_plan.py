"""Plans: FLOP held against torch's counter, memory against what tensors really hold, and what is refused."""

import json
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from opensiglip.apps.cli import main
from opensiglip.data.example import Source
from opensiglip.data.loader import DataPlan, Steps, to_device
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.losses import cost
from opensiglip.losses.cross_entropy import _linear_cross_entropy
from opensiglip.losses.fused import CPU
from opensiglip.losses.pairwise import _ring_sigmoid, _ring_softmax
from opensiglip.losses.prototypes import _prototype_distillation
from opensiglip.models.short_start import waves
from opensiglip.recipes import Recipe, build_recipe, find_recipe
from opensiglip.training.accumulate import accumulate
from opensiglip.training.config import OptimizerName
from opensiglip.training.learner import Learner, denominators
from opensiglip.training.optimizers.muon import hidden_matrices
from opensiglip.training.planning import check
from opensiglip.training.planning.networks import meta_learner
from opensiglip.training.planning.plan import make_plan, mends, trace
from opensiglip.training.planning.shapes import DRAWN, batch_shapes
from opensiglip.training.planning.step import Setting, fake_step
from opensiglip.training.planning.trace import Trace
from opensiglip.training.planning.traffic import traffic
from opensiglip.types import Batch

BATCH = DRAWN  # so that the step is of the very examples that its shapes are taken from
RECIPES = ("siglip", "clip", "coca", "locca", "silc", "tips", "siglip2", "siglip2_naflex", "tasks", "pali")
FUSED = _linear_cross_entropy, _prototype_distillation, _ring_sigmoid, _ring_softmax
OPENED = {op._opoverload._overloadpacket: op._init_fn for op in FUSED}
IN_PLACE = {torch.ops.aten.addmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * b[1]}  # torch's counter passes it over
Real = Callable[[], None]


def opened(function: Callable[..., Any]) -> Callable[..., int]:
    """A fused loss's FLOP by torch's counter: its own code is run once more."""

    def formula(*args: Any, out_val: Any = None) -> int:
        with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as inner:
            function(*args)
        return int(inner.get_total_flops())

    formula._get_raw = True  # type: ignore[attr-defined]
    return formula


@pytest.fixture
def data(scenes: Source, pipeline: TextPipeline) -> Callable[[Recipe], DataPlan]:
    def make(recipe: Recipe) -> DataPlan:
        text = pipeline.with_length(recipe.architecture.length)
        return DataPlan(
            sources=[scenes], frame=recipe.frame, fields=recipe.fields, pipeline=text, batch_size=BATCH, seed=0
        )

    return make


def tiny(name: str) -> Recipe:
    small = {"prototypes": 16} if name in ("silc", "tips", "siglip2") else {}
    return build_recipe(find_recipe(name), {"size": "128x2x256x2/8", "resolution": 32, "length": 32} | small)


def real_step(recipe: Recipe, plan: DataPlan) -> Real:
    """A step of the last stage on real tensors."""
    learner = Learner.new(recipe, plan.pipeline)
    learner.activate(1.0)
    learner.train()
    frame, first, count = plan.step_slice(0)
    rows = Steps(plan).rows(first, count, Counter(), frame, plan.fields, plan.pipeline)
    parts = []
    for at in range(0, count, count // plan.parts):
        batch: Batch = {}
        for index, field in enumerate(plan.fields):
            batch |= field.collate([row[index] for row in rows[at : at + count // plan.parts]], plan.pipeline)
        parts.append(to_device(batch, torch.device("cpu")))
    live = denominators(learner, parts).float()

    def run() -> None:
        accumulate(learner, learner, parts, live, lambda loss: loss.backward(), lambda _: nullcontext())

    return run


@pytest.mark.parametrize("name", RECIPES)
def test_flop_of_a_step_are_those_that_torch_counts(name: str, data: Callable[[Recipe], DataPlan]) -> None:
    recipe = tiny(name)
    plan = data(recipe)
    run = real_step(recipe, plan)
    formulas = {packet: opened(function) for packet, function in OPENED.items()}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        run()
    shapes = batch_shapes(plan, 1.0)[0]
    planned = fake_step(meta_learner(recipe, plan.pipeline), shapes, 1.0, Setting("cpu", "no")).flops
    assert planned.total == pytest.approx(counter.get_total_flops(), rel=0.03)


@pytest.mark.parametrize("name", ["siglip", "siglip2", "tips"])
@pytest.mark.parametrize("parts", [1, 2])
def test_memory_of_a_step_is_what_its_tensors_hold(name: str, parts: int, data: Callable[[Recipe], DataPlan]) -> None:
    recipe = tiny(name)
    plan = replace(data(recipe), parts=parts)
    run = real_step(recipe, plan)
    with Trace(ranks=1, sizes=CPU) as trace:
        run()
    setting = Setting("cpu", "no", parts=parts)
    memory = fake_step(meta_learner(recipe, plan.pipeline), batch_shapes(plan, 1.0)[0], 1.0, setting).memory
    held = memory.activations + memory.losses + memory.gradients
    assert held == pytest.approx(trace.peak.total, rel=0.05)


def test_weights_moments_and_teacher_are_those_of_the_learner(data: Callable[[Recipe], DataPlan]) -> None:
    recipe = tiny("siglip2")
    plan = data(recipe)
    learner = Learner.new(recipe, plan.pipeline)
    learner.activate(1.0)
    memory = fake_step(
        meta_learner(recipe, plan.pipeline), batch_shapes(plan, 1.0)[0], 1.0, Setting("cpu", "no")
    ).memory
    whole = sum(x.numel() * x.element_size() for x in [*learner.parameters(), *learner.buffers()])
    trained = sum(p.numel() * 4 for p in learner.parameters() if p.requires_grad)
    assert memory.weights + memory.teacher == whole
    assert (memory.moments, memory.all_gradients) == (2 * trained, trained)


def test_adafactors_state_is_a_quarter_of_adamws_and_muons_half_in_matrices(
    data: Callable[[Recipe], DataPlan],
) -> None:
    recipe = tiny("siglip")
    plan = data(recipe)
    learner, shapes = meta_learner(recipe, plan.pipeline), batch_shapes(plan, 0.0)[0]
    names: tuple[OptimizerName, ...] = ("adamw", "muon", "adafactor")
    held = [fake_step(learner, shapes, 0.0, Setting("cpu", "no", optimizer=name)).memory.moments for name in names]
    matrices = hidden_matrices(learner)
    in_matrices = sum(p.numel() * 4 for p in learner.parameters() if id(p) in matrices)
    assert held[1] == held[0] - in_matrices and in_matrices > 0.3 * held[0] / 2
    assert 0.25 < held[2] / held[0] < 0.3


def test_checkpointing_parts_and_sharding_hold_less(data: Callable[[Recipe], DataPlan]) -> None:
    recipe = tiny("siglip")
    plan = data(recipe)
    learner, shapes = meta_learner(recipe, plan.pipeline), batch_shapes(plan, 0.0)[0]
    plain = Setting("gpu", "bf16")
    held = {
        name: fake_step(learner, shapes, 0.0, setting).memory
        for name, setting in {
            "plain": plain,
            "checkpointing": replace(plain, checkpointing=True),
            "parts": replace(plain, parts=4),
            "two": replace(plain, ranks=2),
            "sharded": replace(plain, ranks=2, shard=True),
        }.items()
    }
    assert held["checkpointing"].activations < held["plain"].activations / 2
    assert held["parts"].activations < held["plain"].activations / 2
    assert held["sharded"].moments == held["two"].moments // 2


def test_a_stage_is_planned_for_each_start(data: Callable[[Recipe], DataPlan]) -> None:
    recipe = tiny("siglip2")
    plan = data(recipe)
    made = make_plan(meta_learner(recipe, plan.pipeline), plan, Setting("cpu", "no"))
    first, last = made.stages
    assert (first.begin, first.end, last.end) == (0.0, 0.8, 1.0)
    assert "masked_patches" in last.terms and "masked_patches" not in first.terms
    assert "EMA teacher, 1 x 32 px" in last.flops()[0]
    totals = [sum(count.total() for count in stage.flops()) for stage in (first, last)]
    assert made.flops == pytest.approx(0.8 * totals[0] + 0.2 * totals[1])


@pytest.mark.parametrize("slopes", [True, False])
def test_formulas_of_the_fused_losses_are_what_torch_counts_inside(slopes: bool) -> None:
    rows, columns, scale = torch.randn(6, 4), torch.randn(6, 4), torch.ones(1)
    valid, group = torch.ones(6, dtype=torch.bool), torch.tensor([0, 0, 1, 2, 3, 4])
    hidden, weight, targets = torch.randn(5, 4), torch.randn(9, 4), torch.tensor([0, 1, 2, 3, 4])

    def views(count: int) -> Tensor:
        return torch.randn(5, count, 4)

    calls = {
        cost.SIGMOID: (rows, columns, scale, scale, valid, group, False, slopes),
        cost.SOFTMAX: (rows, columns, scale, valid, group, True, slopes),
        cost.CROSS_ENTROPY: (hidden, weight, torch.zeros(9), targets, torch.ones(5), torch.float32, slopes),
        cost.PROTOTYPES: (views(3), weight, views(2), weight, torch.zeros(9), 0.1, 0.04, torch.float32, slopes),
    }
    for operation, args in calls.items():
        assert cost.flops(operation, args, 1) == opened(OPENED[operation])(*args)
    assert cost.flops(torch.ops.aten.mm, (), 1) is None


def test_bytes_that_a_ring_sends_are_half_of_a_gathering() -> None:
    sent = traffic(weights=80, trained=40, examples=8, width=16, losses=1, ranks=4, shard=False)
    assert sent.gradients == 2 * 3 * 40 // 4
    assert sent.ring == (3 + 4) * 8 * 16 * 4
    assert sent.gather == 4 * 3 * 8 * 16 * 4
    alone = traffic(weights=80, trained=40, examples=8, width=16, losses=1, ranks=1, shard=False)
    assert (alone.gradients, alone.ring, alone.gather) == (0, 0, 0)


def test_what_does_not_fit_is_told_how_to(data: Callable[[Recipe], DataPlan]) -> None:
    recipe = tiny("siglip")
    plan = data(recipe)
    learner, kinds, setting = meta_learner(recipe, plan.pipeline), batch_shapes(plan, 0.0), Setting("cpu", "no")
    need = fake_step(learner, kinds[0], 0.0, setting).memory.total
    checkpointed, parts = mends(learner, kinds, setting, need - 1)
    assert checkpointed.startswith("--checkpointing") and parts.startswith("--accumulate 2")
    assert mends(learner, kinds, replace(setting, parts=BATCH // 2), 1) == []


def test_parts_that_do_not_divide_a_batch_are_told_which_do(data: Callable[[Recipe], DataPlan]) -> None:
    plan = data(tiny("siglip"))
    shapes, setting = batch_shapes(plan, 0.0)[0], Setting("cpu", "no", parts=plan.batch_size + 1)
    with pytest.raises(UserError, match=f"give --batch-size {plan.batch_size + 1}.$"):
        trace(meta_learner(tiny("siglip"), plan.pipeline), shapes, 0.0, setting)


def test_train_says_its_memory_and_refuses_what_does_not_fit(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "free_memory", lambda device: 2**20)
    with pytest.raises(UserError, match=r"this run needs .* GiB a rank by estimate, and 0.00 GiB is free: give "):
        run(tmp_path / "refused", memory_check=True, batch_size=2)
    assert not (tmp_path / "refused" / "config.json").exists()
    run(tmp_path / "refused", memory_check=False, steps=1)
    assert "memory      not estimated (--no-memory-check)" in capsys.readouterr().out
    monkeypatch.undo()
    run(tmp_path / "said", memory_check=True, steps=1)
    assert "GiB a rank by estimate, " in capsys.readouterr().out


def test_the_command_prints_text_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "siglip", "--size", "tiny", "--batch-size", "64", "--gpus", "2", "--examples", "1e6"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "EMA" not in said and "image tower, 1 x 64 px" in said and "GPU-hours" in said
    assert main([*words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["fits"] and facts["by_stage"][0]["memory"]["total"] == facts["memory_total"]
    assert facts["gpu_hours"] == pytest.approx(facts["days"] * 48)
    assert main(["plan", "siglip", "--gpu", "t4", "--precision", "bf16"]) == 2
    assert "an t4 has fp32, fp16" in capsys.readouterr().err


def test_a_model_of_shapes_needs_no_linspace_that_knows_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """As transformers leaves it to torch, which looks once for the functions that `with torch.device(...)` changes."""
    plain = torch.linspace
    monkeypatch.setattr(torch, "linspace", lambda *given, device="cpu", **named: plain(*given, device=device, **named))
    with torch.device("meta"):
        assert waves(4, 8).device.type == "meta"
