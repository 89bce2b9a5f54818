"""Compiled or with activations formed again, a step has the losses and the gradient of the plain one."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from conftest import Run, Small, collate, draw, exact
from torch import Tensor

from opensiglip.data.fields.field import Visit
from opensiglip.data.text import TextPipeline
from opensiglip.training.learner import Learner, denominators
from opensiglip.types import Batch

EXACT = 1e-12


@pytest.fixture
def step(small: Small, uneven: list[Visit], pipeline: TextPipeline) -> tuple[Learner, Batch]:
    """SigLIP 2 with all its objectives, and a batch, in float64."""
    recipe = small("siglip2")
    batch = exact(collate(recipe, draw(recipe, uneven, pipeline), pipeline))
    torch.manual_seed(0)
    return Learner.new(replace(recipe, objectives=deepcopy(recipe.objectives)), pipeline).double(), batch


def measured(learner: Learner, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    learner.zero_grad()
    losses, _ = learner(batch, denominators(learner, [batch]))
    losses["loss"].backward()
    return losses, {name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None}


def assert_same(ours: tuple[dict[str, Tensor], ...], theirs: tuple[dict[str, Tensor], ...]) -> None:
    for some, others in zip(ours, theirs, strict=True):
        assert some.keys() == others.keys()
        for name, value in others.items():
            torch.testing.assert_close(some[name], value, rtol=0, atol=EXACT, msg=name)


def test_the_whole_step_compiles_into_one_graph_that_agrees(step: tuple[Learner, Batch]) -> None:
    learner, batch = step
    plain = measured(learner, batch)
    learner.compile(backend="aot_eager", fullgraph=True)
    assert_same(measured(learner, batch), plain)
    learner.active = {"sigmoid", "caption"}  # another phase: another graph
    assert set(measured(learner, batch)[0]) == {"sigmoid", "caption", "loss"}


def test_activations_formed_again_give_the_same_gradient(step: tuple[Learner, Batch]) -> None:
    learner, batch = step
    plain, kept = measured(learner, batch), saved(learner, batch)
    learner.model.checkpoint_activations()
    assert_same(measured(learner, batch), plain)
    assert saved(learner, batch) < 0.65 * kept


def saved(learner: Learner, batch: Batch) -> int:
    """Bytes that autograd keeps from forward for backward."""
    total: list[int] = []

    def pack(x: Tensor) -> Tensor:
        total.append(x.nbytes)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        learner(batch, denominators(learner, [batch]))
    return sum(total)


def test_a_compiled_run_with_checkpointing_trains(
    run: Run, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, seen = Learner.compile, list[Learner]()

    def compile_quickly(learner: Learner) -> None:
        seen.append(learner)
        original(learner, backend="aot_eager")

    monkeypatch.setattr(Learner, "compile", compile_quickly)
    made = run(tmp_path_factory.mktemp("compiled") / "run", steps=5, compile=True, checkpointing=True)
    plain = run(tmp_path_factory.mktemp("plain") / "run", steps=5)
    assert len(seen) == 1 and seen[0].model.decoder is not None and seen[0].model.decoder.checkpointing
    assert made["losses"].keys() == plain["losses"].keys() >= {"loss/local_to_global"}, "also the last fifth"
    for name, loss in plain["losses"].items():
        assert made["losses"][name]["last"] == pytest.approx(loss["last"], rel=1e-2), name
