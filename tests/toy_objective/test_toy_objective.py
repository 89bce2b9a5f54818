"""An objective of a user's own, with all that one may have, in a run: nothing outside this folder knows it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SHAPE
from safetensors.torch import load_file

from opensiglip.errors import UserError
from opensiglip.models.sizes import SHAPES
from opensiglip.training.health import Collapsed
from opensiglip.training.log import read_lines
from opensiglip.training.run import train

RECIPE = f"{Path(__file__).with_name('recipe.py')}:toy_objective"
STEPS = 8


@pytest.fixture
def go(folder: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`train` with the recipe on the squares, networks of a few thousand weights."""
    monkeypatch.setitem(SHAPES, "tiny", SHAPE)
    shared: dict[str, Any] = {"size": "tiny", "resolution": 32, "batch_size": 8, "workers": 0, "held_out": 0}
    shared |= {"precision": "fp32", "vocabulary": 300, "steps": STEPS, "save_every": 4, "lr": 1e-2}
    shared |= {"memory_check": False}
    return lambda out, **changes: train(RECIPE, data=changes.pop("data", folder), out=out, **shared | changes)


def test_a_run_builds_starts_updates_watches_and_logs_it(go: Any, tmp_path: Path) -> None:
    go(tmp_path / "run", save_every=1, memory_check=True)
    rows = read_lines(tmp_path / "run" / "metrics.jsonl")
    late = {"loss/caption_tokens", "caption_tokens/most_frequent"}
    assert [set(row) & late for row in rows] == [set()] * 2 + [late] * 6, "from a quarter of training on"
    vocabulary = json.loads((tmp_path / "run" / "model" / "opensiglip.json").read_text())["vocabulary"]
    state = load_file(tmp_path / "run" / "checkpoints" / f"step-{STEPS:08d}" / "learner.safetensors")
    frequency = state["objectives.caption_tokens.frequency"]
    assert state["objectives.caption_tokens.head.weight"].shape == (vocabulary, SHAPE.width)
    assert frequency[1] == pytest.approx(1 - 0.5 * 0.9**6), "every caption has the end token; it starts at a half"
    assert rows[-1]["caption_tokens/most_frequent"] == pytest.approx(float(frequency.max()))
    assert rows[2]["loss/caption_tokens"] == pytest.approx(math.log(2), rel=0.2)
    assert rows[-1]["loss/caption_tokens"] < 0.8 * rows[2]["loss/caption_tokens"]


@pytest.mark.parametrize("cut", [2, 4])
def test_its_learned_state_is_resumed_bit_for_bit(cut: int, go: Any, tmp_path: Path) -> None:
    go(tmp_path / "whole")
    go(tmp_path / "cut", save_every=cut)
    for step in range(cut + 1, STEPS + 1):
        for path in (tmp_path / "cut" / "checkpoints").glob(f"step-{step:08d}"):
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
    go(tmp_path / "cut", save_every=cut, resume=True)
    whole, again = (
        load_file(tmp_path / name / "checkpoints" / f"step-{STEPS:08d}" / "learner.safetensors")
        for name in ("whole", "cut")
    )
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


def test_its_keyword_is_bounded_and_its_alarm_ends_a_run(go: Any, folder: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--decay 1.5 is out of range; give a number of at least 0 and less than 1"):
        go(tmp_path / "run", decay=1.5)
    bare = tmp_path / "data"
    bare.mkdir()
    for path in Path(folder).glob("*.png"):
        (bare / path.name).write_bytes(path.read_bytes())
    row = '{{"file_name": "{0}.png", "regions": [{{"bbox": [1, 8, 9, 24], "phrase": "square"}}]}}'
    (bare / "metadata.jsonl").write_text("\n".join(row.format(number) for number in range(24)))
    with pytest.raises(Collapsed, match=r"no entry occurs in any caption .* for 5 steps at step 9; .* with other data"):
        go(tmp_path / "other", data=str(bare), decay=0.0, steps=20)
