"""Half precision: which is chosen where, and the loss scaled where it is fp16."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import Run
from safetensors.torch import load_file

from opensiglip.losses.cross_entropy import linear_cross_entropy
from opensiglip.training.log import read_lines
from opensiglip.training.precision import choose, multiplies_bf16

START, BACK, STEPS = 2.0**40, 2.0**-3, 11


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "fp16")])
def test_a_gpu_without_bf16_of_its_own_gets_fp16(native: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """T4 and V100 emulate bf16, which torch counts as support unless it is asked not to."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert choose("auto", torch.device("cuda"))[0] == expected


def test_a_cpu_is_never_given_fp16_unasked() -> None:
    assert choose("auto", torch.device("cpu"))[0] == ("bf16" if multiplies_bf16(torch.device("cpu")) else "no")
    assert choose("fp16", torch.device("cpu"))[0] == "fp16"


def test_fp16_scales_the_loss_skips_what_overflows_and_goes_on_from_its_scale(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From far too large a scale: more steps in a row overflow than a run may diverge for."""
    run(tmp_path / "plain", steps=STEPS, lr=1e-30, distill_start=1.0)  # its weights stay as they begin
    with monkeypatch.context() as patch:
        scaler = partial(torch.amp.GradScaler, init_scale=START, backoff_factor=BACK)
        patch.setattr(torch.amp, "GradScaler", scaler)
        out = tmp_path / "fp16"
        summary = run(out, precision="fp16", steps=STEPS, save_every=1, keep=[0.1], distill_start=1.0)
    rows = read_lines(out / "metrics.jsonl")
    scales = [row["loss_scale"] for row in rows]
    skipped = [row["grad_norm"] is None for row in rows]
    first = skipped.index(False)
    assert 5 < first < STEPS and skipped == [True] * first + [False] * (STEPS - first)
    assert scales == [START * BACK ** min(step, first) for step in range(STEPS)]
    assert (summary["skipped_steps"], summary["precision"]) == (first, "fp16")
    plain = read_lines(tmp_path / "plain" / "metrics.jsonl")[first]
    assert rows[first]["loss"] == pytest.approx(plain["loss"], rel=1e-2) and rows[first]["loss"] != plain["loss"]
    assert rows[first]["grad_norm"] == pytest.approx(plain["grad_norm"], rel=2e-2)  # nothing was stepped before

    last = out / "checkpoints" / f"step-{STEPS:08d}"
    assert json.loads((last / "state.json").read_text())["loss_scale"]["scale"] == scales[-1]
    kept = load_file(out / "checkpoints" / "step-00000001" / "optimizer.safetensors")
    assert kept == {}  # a skipped step is none of the optimizer's
    steps = {float(x) for name, x in load_file(last / "optimizer.safetensors").items() if name.endswith("/step")}
    assert steps == {STEPS - first}
    run(out, precision="fp16", steps=STEPS + 1, save_every=1, distill_start=1.0, resume=True, changed=True)
    assert read_lines(out / "metrics.jsonl")[-1]["loss_scale"] == scales[-1]


def test_the_vocabularys_slopes_stay_wide_in_fp16() -> None:
    """They are formed before the loss is scaled: of 1/V most would be lost."""
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(6, 8), torch.zeros(60_000, 8), torch.zeros(60_000)
    bias[0] = 12.0  # the others' probabilities are 6e-6 of it in all
    wide = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    low = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    targets, weights = torch.zeros(6, dtype=torch.int64), torch.full((6,), 1 / 64)
    linear_cross_entropy(*wide, targets, weights).backward()
    with torch.autocast("cpu", torch.float16):
        linear_cross_entropy(*low, targets, weights).backward()
    for x, y in zip(wide, low, strict=True):
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-3, atol=0)
