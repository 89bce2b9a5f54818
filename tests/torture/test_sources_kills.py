"""Runs over tars, parquet and weights, killed by SIGKILL again and again: the same keys and the same losses.

make torture COUNT=20 kills at so many moments; make test at two.
"""

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_sources_tables import write_parquet
from test_sources_tar import samples, write

from opensiglip.data.sources.registry import open_source

STEPS, BATCH, FEW = 60, 8, 2
KEYS = """
import sys
from opensiglip.data.fields.field import Texts
from opensiglip.data.fields.frame import Frame
from opensiglip.data.loader import DataPlan, Steps, loader
from opensiglip.data.sources.registry import open_source
from opensiglip.data.text import TextPipeline

out, ranks, steps, batch, *specs = sys.argv[1:]
sources, read = [open_source(spec) for spec in specs], []
for source in sources:
    source.example = lambda index, language=None, own=source, ask=source.example: read.append(
        f"{own.kind}/{own.key(own.rows.row(index))}") or ask(index, language)
pipeline = TextPipeline.train(["a picture"])
plans = [DataPlan(sources=sources, frame=Frame(16), fields=[Texts()], pipeline=pipeline, batch_size=int(batch), seed=3,
                  rank=rank, ranks=int(ranks), steps=int(steps)) for rank in range(int(ranks))]
done = sum(1 for _ in open(out)) if __import__("os").path.exists(out) else 0
orders = [Steps(plan) for plan in plans]
with open(out, "a") as file:
    for step in range(done, int(steps)):
        read.clear()
        for order in orders:
            order[step]
        file.write(" ".join(read) + "\\n")
        file.flush()
"""


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("data")
    for shard in range(5):
        write(root / "tars" / f"{shard}.tar", samples(20, 20 * shard))
    for number in range(3):
        write_parquet(root / "parquet" / f"{number}.parquet", 30 * number, 30)
    found = [f"{root}/tars=2", f"{root}/parquet=1"]
    for spec in found:
        open_source(spec)  # so that indexes are there
    return found


def test_keys_are_the_same_at_any_number_of_ranks_and_after_any_kill(
    specs: list[str], tmp_path: Path, torture_count: Callable[[int], int]
) -> None:
    script, straight = tmp_path / "keys.py", tmp_path / "straight"
    script.write_text(KEYS)

    def command(out: Path, ranks: int, steps: int = STEPS) -> list[str]:
        return [sys.executable, str(script), str(out), str(ranks), str(steps), str(BATCH), *specs]

    subprocess.run(command(straight, 1), check=True)
    whole = straight.read_text().splitlines()
    assert len(whole) == STEPS and all(len(line.split()) == BATCH for line in whole)
    share = sum(line.count("tar/") for line in whole) / (STEPS * BATCH)
    assert abs(share - 2 / 3) < 2 / (STEPS * BATCH)
    growing = tmp_path / "growing"  # 1, then 2, then 4 ranks
    for ranks, steps in ((1, STEPS // 3), (2, 2 * STEPS // 3), (4, STEPS)):
        subprocess.run(command(growing, ranks, steps), check=True)
    assert growing.read_text().splitlines() == whole
    lines = tmp_path / "killed"
    rng, moments = random.Random(0), torture_count(FEW)
    for _ in range(moments):
        running = subprocess.Popen(command(lines, rng.choice((1, 2, 4))))
        before, deadline = written(lines), time.monotonic() + 60
        more = rng.randint(1, max(2, STEPS // (moments + 1)))
        while written(lines) < before + more and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        running.kill()
        running.wait()
        text = lines.read_text() if lines.exists() else ""
        lines.write_text(text[: text.rfind("\n") + 1])  # a line that was cut is a step to take again
    subprocess.run(command(lines, 1), check=True)
    assert lines.read_text().splitlines() == whole


def written(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def losses(out: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]


def test_a_run_that_is_killed_again_and_again_has_the_straight_runs_losses(
    specs: list[str], recipe: str, tmp_path: Path, torture_count: Callable[[int], int]
) -> None:
    flags = ["--steps", str(STEPS), "--batch-size", str(BATCH), "--save-every", "5", "--workers", "0"]
    flags += ["--held-out", "0"]
    flags += ["--precision", "fp32", "--vocabulary", "300"] + [word for spec in specs for word in ("--data", spec)]

    def command(out: Path, *more: str) -> list[str]:
        return [sys.executable, "-m", "opensiglip", "train", recipe, "--out", str(out), *flags, *more]

    subprocess.run(command(tmp_path / "straight"), check=True, capture_output=True)
    out, moments, kills = tmp_path / "killed", torture_count(FEW), 0
    rng = random.Random(1)
    while kills < moments:
        resume = ["--resume"] if (out / "config.json").is_file() else []
        running = subprocess.Popen(command(out, *resume), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before, deadline = written(out / "metrics.jsonl"), time.monotonic() + 120
        more = rng.randint(1, max(2, 2 * STEPS // (moments + 1)))
        while written(out / "metrics.jsonl") < before + more and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        running.kill()
        running.wait()
        kills += 1
    subprocess.run(command(out, "--resume"), check=True, capture_output=True)
    expected = losses(tmp_path / "straight")
    assert len(expected) == STEPS and losses(out) == expected
    epochs = {name: value for name, value in expected[-1].items() if name.startswith("epochs/")}
    assert sorted(epochs.values()) == pytest.approx([STEPS * BATCH / 3 / 88, STEPS * BATCH * 2 / 3 / 98], abs=0.02)
