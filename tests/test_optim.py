"""What the optimizer is given at each step, and the rules by which a run goes on."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run
from torch import nn

from opensiglip.checkpoints.run_folder import RunFolder, manifest_of
from opensiglip.optim import RULES, adamw, keep_rules, rate
from opensiglip.training.log import read_lines

LR, CLIP = 2e-3, 0.5
SETTINGS: dict[str, Any] = {"steps": 8, "warmup": 4, "clip_norm": CLIP, "lr": LR, "weight_decay": 0.3, "keep": (0.25,)}


@pytest.fixture(scope="module")
def taken() -> list[dict[str, Any]]:
    """What `optimizer.step` found, one entry a step."""
    return []


@pytest.fixture(scope="module")
def out(run: Run, taken: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run whose optimizer is watched. Not to be written to."""
    original, folder = torch.optim.AdamW.step, tmp_path_factory.mktemp("optim") / "run"

    def step(self: torch.optim.AdamW, *inputs: Any) -> Any:
        grads = [p.grad.flatten() for group in self.param_groups for p in group["params"] if p.grad is not None]
        groups = [{key: group[key] for key in ("lr", "weight_decay", "betas")} for group in self.param_groups]
        taken.append({"groups": groups, "norm": float(torch.cat(grads).norm())})
        return original(self, *inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        run(folder, **SETTINGS)
    yield folder


def test_the_rate_that_is_logged_is_the_one_that_is_used(out: Path, taken: list[dict[str, Any]]) -> None:
    scheduled = [LR * rate(step, 8, 4) for step in range(8)]
    assert [row["lr"] for row in read_lines(out / "metrics.jsonl")] == scheduled
    assert [[group["lr"] for group in step["groups"]] for step in taken] == [[lr, lr] for lr in scheduled]
    assert len(set(scheduled)) > 5


def test_decay_follows_the_rate_and_betas_are_siglips(out: Path, taken: list[dict[str, Any]]) -> None:
    """torch's AdamW takes lr * weight_decay off a weight, so that must stay: the schedule is in the rate."""
    for step in taken:
        assert [group["weight_decay"] for group in step["groups"]] == [0.3, 0.0]
        assert [group["betas"] for group in step["groups"]] == [(0.9, 0.95)] * 2


def test_the_gradient_is_clipped_to_its_norm(out: Path, taken: list[dict[str, Any]]) -> None:
    logged = [row["grad_norm"] for row in read_lines(out / "metrics.jsonl")]
    assert max(logged) > CLIP, "or there is nothing to clip"
    assert [step["norm"] for step in taken] == pytest.approx([min(norm, CLIP) for norm in logged], rel=1e-4)


def test_slower_parameters_decay_as_all_others_do() -> None:
    """big_vision's lr_mults do not scale weight decay. Without a gradient AdamW only decays: by lr * decay = 0.02."""
    torch.manual_seed(0)
    module = nn.ModuleDict({name: nn.Linear(3, 3) for name in ("tower", "head")})
    before = {name: x.detach().clone() for name, x in module.named_parameters()}
    optimizer = adamw(module, 0.1, 0.2, {"tower.weight", "tower.bias"}, 0.01)
    for group in optimizer.param_groups:
        group["lr"] = 0.1 * group["factor"]
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, after in module.named_parameters():
        torch.testing.assert_close(after, before[name] * (0.98 if "weight" in name else 1.0))
    assert {group["lr"] for group in optimizer.param_groups} == {0.1, 0.001}
    keep_rules(optimizer, RULES)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.2, 20.0, 0.0}
    keep_rules(optimizer, 1)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.2, 0.0}


@pytest.mark.parametrize("rules", [1, RULES])
def test_a_run_goes_on_by_the_rules_that_it_began_with(rules: int, out: Path, run: Run, tmp_path: Path) -> None:
    """Checkpoints made before there were rules say none: their warm-up began at 1 / w."""
    shutil.copytree(out, tmp_path / "run")
    kept = RunFolder(tmp_path / "run").checkpoint(2)
    for path in kept.parent.iterdir():
        if path != kept:
            shutil.rmtree(path)
    if rules == 1:
        state = json.loads((kept / "state.json").read_text())
        del state["rules"]
        (kept / "state.json").write_text(json.dumps(state))
        manifest_of(kept).unlink()  # checkpoints that old have none
    run(tmp_path / "run", resume=True, **SETTINGS)
    rates = [row["lr"] for row in read_lines(tmp_path / "run" / "metrics.jsonl")]
    assert rates[2:4] == [LR * 3 / 4, LR * 4 / 4] if rules == 1 else [LR * 2 / 4, LR * 3 / 4]
    assert rates[4:] == [LR * rate(step, 8, 4) for step in range(4, 8)]
    saved = json.loads((RunFolder(tmp_path / "run").checkpoint(8) / "state.json").read_text())
    assert saved["rules"] == rules, "and so on, whoever resumes it next"


def test_an_automatic_bias_is_the_log_odds_of_a_match(run: Run, tmp_path: Path) -> None:
    """Of 8 images and 8 texts one pair in 8 matches: b = log(1/8 / (7/8)) = -log 7."""
    run(tmp_path / "run", steps=1, lr=1e-9, logit_bias="auto")
    assert read_lines(tmp_path / "run" / "metrics.jsonl")[0]["logit_bias"] == pytest.approx(-1.9459101, rel=1e-6)
