"""`train --dry-run` says what a run will do, and writes nothing."""

import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from opensiglip.apps.cli import main
from opensiglip.errors import UserError
from opensiglip.training import dry_run as dry_run_module
from opensiglip.training.dry_run import Stage, dry_run
from opensiglip.training.log import read_lines

Run = Callable[..., dict[str, Any]]
SAME = "--steps 10 --batch-size 8 --workers 0 --held-out 2 --precision fp32 --vocabulary 300 --keep-last 1"


def test_it_computes_the_first_loss_of_the_run_and_writes_nothing(
    run: Run, recipe: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    monkeypatch.setattr(dry_run_module, "gib", lambda size: f"{size} bytes")
    assert main(["train", recipe, "--data", folder, "--out", "runs/dry", *SAME.split(), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert list((tmp_path / "empty").rglob("*")) == []
    run(tmp_path / "run", steps=1)
    loss = read_lines(tmp_path / "run" / "metrics.jsonl")[0]["loss"]
    assert f"stage       steps 0 to 8: sigmoid, caption; 16 image and 64 text tokens; loss {loss:.3f}, " in said
    assert "stage       steps 8 to 10: sigmoid, caption, local_to_global, masked_patches; 16 image" in said
    assert "            image uint8 [8, 3, 32, 32]\n" in said and "small data  2 held-out examples" in said
    assert "runs/dry/checkpoints: " in said and "1 stay" in said
    each, most = re.findall(r"checkpoints: (\d+) bytes each, .* so (\d+) bytes at most", said)[0]
    assert int(most) == 2 * int(each), "a new one is written before the old one goes"


def test_the_time_is_the_sum_of_the_timed_steps(recipe: str, folder: str, tmp_path: Path) -> None:
    said = dry_run(recipe, data=[folder], out=tmp_path / "no", steps=1000, batch_size=8, workers=0, held_out=0,
                   precision="fp32", vocabulary=300, memory_check=False)  # fmt: skip
    stages = re.findall(r"steps (\d+) to (\d+): .*, ([\d.]+) s a step \([^)]*\), ([\d.]+) s to make", said)
    assert [(int(first), int(last)) for first, last, _, _ in stages] == [(0, 800), (800, 1000)]
    seconds = sum((int(last) - int(first)) * (float(step) + float(read)) for first, last, step, read in stages)
    found = re.search(r"time        ([\d.]+) min for 1000 steps", said)
    assert found is not None and float(found[1]) == pytest.approx(seconds / 60, abs=0.07)  # of rounded times
    assert not (tmp_path / "no").exists()


def test_it_refuses_what_train_refuses_and_goes_on_where_resume_would(
    run: Run, recipe: str, folder: str, tmp_path: Path
) -> None:
    run(tmp_path / "run", steps=3)
    before = sorted(tmp_path.rglob("*"))
    same: dict[str, Any] = {"data": [folder], "out": tmp_path / "run", "batch_size": 8, "workers": 0, "held_out": 0,
                            "precision": "fp32", "vocabulary": 300, "memory_check": False}  # fmt: skip
    shutil.copytree(folder, tmp_path / "data")
    for image in sorted(tmp_path.glob("data/*.png"))[::2]:
        image.write_bytes(b"no image")
    before = sorted(tmp_path.rglob("*"))
    said = dry_run(recipe, steps=3, **same | {"data": [str(tmp_path / "data")], "out": tmp_path / "new"})
    assert "left out    of the examples of these batches, " in said and "free" in said and "too little" not in said
    with pytest.raises(UserError, match=r"--out .*/0.png/run can't be written to \(Not a directory\)"):
        dry_run(recipe, steps=3, **same | {"out": tmp_path / "data" / "0.png" / "run"})
    with pytest.raises(UserError, match="already holds a run; continue it with --resume"):
        dry_run(recipe, steps=3, **same)
    said = dry_run(recipe, steps=6, resume=True, changed=True, **same)
    assert "steps       3 -> 6" in said and "stage       steps 3 to 5" in said and "for 3 steps" in said
    assert "nothing is left to train: all 3 steps are done" in dry_run(recipe, steps=3, resume=True, **same)
    assert sorted(tmp_path.rglob("*")) == before


def test_workers_read_while_a_step_computes() -> None:
    stage = Stage(
        first=10, last=20, terms=(), loss=0.0, seconds=1.0, reading=4.0, images=8, batch={}, skipped=Counter()
    )
    assert [stage.wall(workers) for workers in (0, 1, 2, 8)] == [50, 40, 20, 10]


def test_it_is_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_run_module, "world", lambda: (0, 2))
    with pytest.raises(UserError, match="--dry-run runs in one process"):
        dry_run("siglip", data=["scenes"], out=Path("no"))
