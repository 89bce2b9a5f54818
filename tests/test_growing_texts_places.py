"""CoCa's text half has one table of positions of its own: it grows with `--init` and with `--continue-from`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SIDE
from safetensors.torch import load_file
from torch import Tensor

from opensiglip.training.run import train

SHORT, LONG, STAY = 24, 40, 20  # tokens; those whose positions stay
EXTRA = 2  # positions beyond those of the tokens: of the start, and of [CLS], which has the last


@pytest.fixture(scope="module")
def given(folder: str) -> dict[str, Any]:
    shared: dict[str, Any] = {"data": [folder], "batch_size": 4, "workers": 0, "held_out": 0, "precision": "fp32"}
    return shared | {"size": "32x2x64x2/8", "resolution": SIDE, "memory_check": False, "steps": 2, "save_every": 1}


@pytest.fixture(scope="module")
def before(given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps on short texts, of which both checkpoints are kept."""
    out = tmp_path_factory.mktemp("coca") / "short"
    train("coca", out=out, length=SHORT, vocabulary=300, keep_last=2, **given)
    return out


def positions(run: Path, step: int) -> Tensor:
    return load_file(run / f"checkpoints/step-{step:08d}/learner.safetensors")["model.text.position"]


@pytest.mark.parametrize(
    ("flag", "place", "step"), [("init", "", 2), ("continue_from", "checkpoints/step-00000001", 1)]
)
def test_cocas_positions_are_stretched_behind_the_first_and_before_the_last(
    given: dict[str, Any], before: Path, tmp_path: Path, flag: str, place: str, step: int
) -> None:
    """Of what lies behind the first twenty the ends stay, and the rest is linear between the old ones."""
    train("coca", out=tmp_path / "long", length=LONG, lr=1e-9, **given, **{flag: str(before / place)})
    old, new = positions(before, step), positions(tmp_path / "long", 2)
    assert (len(old), len(new)) == (SHORT + EXTRA, LONG + EXTRA)
    np.testing.assert_allclose(new[:STAY].numpy(), old[:STAY].numpy(), rtol=0, atol=1e-6)
    places = np.linspace(0, len(old) - STAY - 1, len(new) - STAY)
    for column in range(old.shape[1]):
        wanted = np.interp(places, np.arange(len(old) - STAY), old[STAY:, column].numpy())
        np.testing.assert_allclose(new[STAY:, column].numpy(), wanted, rtol=0, atol=1e-6)
    assert float((old[STAY] - old[-1]).abs().max()) > 1e-3, "positions differ, so this compared something"
