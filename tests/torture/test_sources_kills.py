"""Runs over tars, parquet and weights, killed by SIGKILL again and again: the same keys and the same losses.

make torture COUNT=20 kills at so many moments; make test at two.
"""

import json
import multiprocessing
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from test_runs import context, run
from test_sources_tables import write_parquet
from test_sources_tar import samples, write
from victim import go

from opensiglip.data.fields.field import Texts
from opensiglip.data.fields.frame import Frame
from opensiglip.data.loader import DataPlan, Steps
from opensiglip.data.sources.registry import open_source
from opensiglip.data.text import TextPipeline

STEPS, RUN, BATCH, FEW = 60, 24, 8, 2  # steps whose keys are compared, and of a run that trains


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


def write_keys(specs: list[str], out: Path, ranks: int, steps: int = STEPS) -> None:
    """Add a line of keys for each step that `out` lacks: what all ranks read, in the order of ranks."""
    read: list[str] = []

    def told(source: Any) -> Any:
        ask = source.example

        def example(index: int, language: str | None = None) -> Any:
            read.append(f"{source.kind}/{source.key(source.rows.row(index))}")
            return ask(index, language)

        source.example = example
        return source

    facts: dict[str, Any] = {"sources": [told(open_source(spec)) for spec in specs], "frame": Frame(16), "seed": 3}
    facts |= {"fields": [Texts()], "pipeline": TextPipeline.train(["a picture"]), "batch_size": BATCH, "steps": STEPS}
    orders = [Steps(DataPlan(**facts, rank=rank, ranks=ranks)) for rank in range(ranks)]
    with out.open("a") as file:
        for step in range(written(out), steps):
            read.clear()
            for order in orders:
                order[step]
            file.write(" ".join(read) + "\n")
            file.flush()


def test_keys_are_the_same_at_any_number_of_ranks_and_after_any_kill(
    specs: list[str], tmp_path: Path, torture_count: Callable[[int], int]
) -> None:
    straight, growing, killed = (tmp_path / name for name in ("straight", "growing", "killed"))
    write_keys(specs, straight, 1)
    whole = straight.read_text().splitlines()
    assert len(whole) == STEPS and all(len(line.split()) == BATCH for line in whole)
    share = sum(line.count("tar/") for line in whole) / (STEPS * BATCH)
    assert abs(share - 2 / 3) < 2 / (STEPS * BATCH)
    for ranks, steps in ((1, STEPS // 3), (2, 2 * STEPS // 3), (4, STEPS)):
        write_keys(specs, growing, ranks, steps)
    assert growing.read_text().splitlines() == whole
    rng, moments = random.Random(0), torture_count(FEW)
    for _ in range(moments):
        ranks = rng.choice((1, 2, 4))
        running = multiprocessing.get_context("fork").Process(target=write_keys, args=(specs, killed, ranks))
        running.start()
        before, deadline = written(killed), time.monotonic() + 60
        more = rng.randint(1, max(2, STEPS // (moments + 1)))
        while written(killed) < before + more and running.is_alive() and time.monotonic() < deadline:
            time.sleep(0.002)
        running.kill()
        running.join(timeout=60)
        text = killed.read_text() if killed.exists() else ""
        killed.write_text(text[: text.rfind("\n") + 1])  # a line that was cut is a step to take again
    write_keys(specs, killed, 1)
    assert killed.read_text().splitlines() == whole


def written(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def losses(out: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]


def train_until(rows: int, out: Path, recipe: str, specs: list[str]) -> None:
    """Begin or resume a run, and kill it once its log has so many rows."""
    resume, said = (out / "config.json").is_file(), out.with_suffix(".txt")
    flags = {"steps": RUN, "batch_size": BATCH, "save_every": 4}
    work = partial(go, recipe, specs, out, resume=resume, **flags)
    running = context.Process(target=run, args=(work, said), daemon=True)
    running.start()
    deadline = time.monotonic() + 120
    while written(out / "metrics.jsonl") < rows and running.is_alive() and time.monotonic() < deadline:
        time.sleep(0.005)
    running.kill()
    running.join(timeout=60)
    assert written(out / "metrics.jsonl") >= rows, said.read_text()


def test_a_run_that_is_killed_again_and_again_has_the_straight_runs_losses(
    specs: list[str], recipe: str, tmp_path: Path, torture_count: Callable[[int], int]
) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    train_until(RUN, straight, recipe, specs)
    rng, moments = random.Random(1), torture_count(FEW)
    for _ in range(moments):
        more = rng.randint(1, max(2, 2 * RUN // (moments + 1)))
        train_until(min(RUN, written(killed / "metrics.jsonl") + more), killed, recipe, specs)
    train_until(RUN, killed, recipe, specs)
    expected = losses(straight)
    assert len(expected) == RUN and losses(killed) == expected
    epochs = {name: value for name, value in expected[-1].items() if name.startswith("epochs/")}
    assert sorted(epochs.values()) == pytest.approx([RUN * BATCH / 3 / 89, RUN * BATCH * 2 / 3 / 98], abs=0.02)
