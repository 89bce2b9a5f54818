"""Sums are taken in float64 where the device has it, and nowhere asked of one that has not."""

import re
from pathlib import Path

import pytest
import torch

import opensiglip
from opensiglip.data.loader import to_device
from opensiglip.float64 import moved, widen, widest

ROOT = Path(opensiglip.__file__).parent


def test_the_widest_numbers_of_apples_gpus_are_float32() -> None:
    assert widest(torch.device("mps")) == torch.float32
    assert {widest(torch.device(name)) for name in ("cpu", "cuda", "meta")} == {torch.float64}
    assert widen(torch.tensor([1, 2])).dtype == torch.float64


def test_a_batch_goes_to_such_a_gpu_without_float64_and_to_others_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    exact, cpu = torch.tensor([1 / 3], dtype=torch.float64), torch.device("cpu")
    batch = {"uniforms": exact, "ids": torch.tensor([2**40]), "states": torch.ones(1).bfloat16()}
    assert torch.equal(to_device(batch, cpu)["uniforms"], exact) and moved(exact, cpu).dtype == torch.float64
    monkeypatch.setattr("opensiglip.float64.widest", lambda device: torch.float32)
    dtypes = {name: field.dtype for name, field in to_device(batch, cpu).items()}
    assert dtypes == {"uniforms": torch.float32, "ids": torch.int64, "states": torch.bfloat16}


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_tensor_of_a_device_is_made_float64_without_asking_for_its_widest(path: Path) -> None:
    assert not re.search(r"\.double\(\)|float64, device=", path.read_text(encoding="utf-8")), "use float64.widen"
