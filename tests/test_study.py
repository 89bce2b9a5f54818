"""A study: declared, carried out to its end whatever stops it, judged, and answered with intervals that hold."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from studied import threads
from test_align import towers as towers
from test_resume import cut_short

from opensiglip.apps.cli import main
from opensiglip.checkpoints.run_folder import RunFolder
from opensiglip.data.sources.state_store import STATES_FILE
from opensiglip.errors import UserError
from opensiglip.evaluation.benchmark import ProbeConfig
from opensiglip.evaluation.benchmarks import decoder_probe
from opensiglip.evaluation.metrics.intervals import (
    Interval,
    mean_over_seeds,
    mean_with_interval,
    paired_difference,
    split_values,
)
from opensiglip.evaluation.run import BENCHMARKS
from opensiglip.models.sizes import Shape
from opensiglip.recipes import RECIPES, build_recipe
from opensiglip.training.log import read_lines
from studies import command, engine
from studies.answer import Column, columns
from studies.command import find
from studies.devices import VISIBLE, places, spread
from studies.engine import carry_out
from studies.studies import STUDIES
from studies.study import Budget, Figure, Run, Study

TINY = {
    "size": "16x1x32x2/8",
    "resolution": 32,
    "length": 24,
    "batch_size": 8,
    "steps": 4,
    "save_every": 2,
    "memory_check": False,
}
SMALLEST = Study(
    name="smallest",
    question="Which <b>one</b>?",
    about="Two runs of four steps.",
    data="scenes:drawings=24,objects=1",
    runs=(Run("comparing", "siglip", {"logit_bias": "auto"}), Run("locating", "locca")),
    figures=(
        Figure("decoder_probe", "grounding_mean_iou", "mean IoU", ("comparing", "locating"), "A paper"),
        Figure("zeroshot", "accuracy", "zero-shot"),
    ),
    budgets={
        "cpu-hour": Budget(
            TINY | {"workers": 0, "vocabulary": 700},
            {"count": 8, "train_count": 16, "probe": ProbeConfig(2, ("aref",))},
        )
    },
)


@pytest.fixture(scope="module", autouse=True)
def small_probe() -> Iterator[None]:
    """A probe's decoder of one layer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder_probe, "SHAPE", Shape(width=32, depth=1, mlp=64, heads=2))
        yield


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest study at two seeds, never stopped. Not to be written to."""
    out = tmp_path_factory.mktemp("study") / "straight"
    carry_out(SMALLEST, out, data=None, seeds=2, budget="cpu-hour")
    return out


def figures(out: Path) -> dict[str, Any]:
    """What every run was judged to be."""
    files = sorted(out.glob("seed-*/*/judged/evaluation.json"))
    return {str(file.relative_to(out)): json.loads(file.read_text())["tasks"] for file in files}


def test_a_study_stopped_anywhere_goes_on_and_ends_the_same(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, judge, began = tmp_path / "out", engine.evaluate, list[tuple[str, int]]()

    def go(seeds: int) -> None:
        carry_out(SMALLEST, out, data=None, seeds=seeds, budget="cpu-hour")

    def killed(*arguments: Any, **keywords: Any) -> Any:
        judge(*arguments, **keywords)
        raise KeyboardInterrupt

    def begun(recipe: str, *, seed: int, **_: Any) -> None:
        began.append((recipe, seed))
        raise KeyboardInterrupt

    cut_short(1, lambda: go(1))  # before the first checkpoint
    assert not list(out.glob("seed-0/comparing/checkpoints/*"))
    cut_short(3, lambda: go(1))  # after it
    assert [path.name for path in out.glob("seed-0/comparing/checkpoints/*")] == ["step-00000002"]
    monkeypatch.setattr(engine, "evaluate", killed)
    with pytest.raises(KeyboardInterrupt):  # all but the last rename
        go(1)
    assert not figures(out) and (out / "seed-0/comparing/summary.json").is_file()
    monkeypatch.setattr(engine, "evaluate", judge)
    go(1)
    assert len(figures(out)) == 2
    assert figures(out) == {file: said for file, said in figures(straight).items() if file.startswith("seed-0")}
    monkeypatch.setattr(engine, "train", begun)
    with pytest.raises(KeyboardInterrupt):
        go(2)
    assert began == [("siglip", 1)], "seed 0 is not trained again"


def test_a_run_goes_on_from_the_checkpoint_that_another_has_kept(tmp_path: Path) -> None:
    """Equal up to there, bit for bit; with a term more from there on, at the same steps of the same schedule."""
    flags = TINY | {"workers": 0, "vocabulary": 700, "logit_bias": "auto", "keep": (0.5,), "prototypes": 8}
    study = Study(
        name="staged",
        question="?",
        about="",
        data="scenes:drawings=24,objects=1",
        runs=(
            Run("with", "siglip2", {"distill_start": 0.5}, after="without"),
            Run("without", "siglip2", {"distill_start": 1.0}),
        ),
        figures=SMALLEST.figures[1:],
        budgets={"cpu-hour": Budget(flags | {"save_every": 1}, {"count": 8})},
    )
    (with_, without) = carry_out(study, tmp_path, data=None, seeds=1, budget="cpu-hour")
    assert [path.name for path in RunFolder(without.folder).complete()] == [f"step-{n:08}" for n in (2, 3, 4)]
    assert json.loads((with_.folder / "config.json").read_text())["train"]["continue_from"].endswith("step-00000002")
    rows, others = (read_lines(RunFolder(job.folder).metrics) for job in (with_, without))
    assert [row["step"] for row in rows] == [2, 3] and {"loss/masked_patches"} <= set(rows[0]) - set(others[2])
    assert all(rows[0][name] == others[2][name] for name in ("loss/sigmoid", "loss/caption", "lr"))
    assert rows[1]["loss/caption"] != others[3]["loss/caption"]


def test_the_command_writes_question_answer_table_and_plot(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(STUDIES, "smallest", SMALLEST)
    monkeypatch.setattr(engine, "train", None)
    assert main(["study", "smallest", "--out", str(straight), "--seeds", "2"]) == 0
    said = capsys.readouterr().out
    assert "4 of them done before" in said and "A paper has comparing < locating" in said
    page = (straight / "study.html").read_text()
    stored = json.loads((straight / "study.json").read_text())
    assert (straight / "study.png").read_bytes().startswith(b"\x89PNG") and "<svg" in page
    assert "Which &lt;b&gt;one&lt;/b&gt;?" in page and "evaluated on 8 held-out examples" in page
    mean = stored["figures"]["mean IoU"]
    assert set(mean) == {"comparing", "locating", "differences"} and len(mean["locating"]["by_seed"]) == 2
    gap = mean["locating"]["mean"] - mean["comparing"]["mean"]
    assert mean["differences"]["locating - comparing"][0] == pytest.approx(gap, abs=1e-9)
    assert set(stored["figures"]["zero-shot"]) == {"comparing", "differences"}, "LocCa has no text tower"
    files = straight.glob("seed-*/locating/summary.json")
    speed = np.median([json.loads(file.read_text())["images_per_second"] for file in files])
    assert stored["runs"]["locating"]["images_per_second"] == pytest.approx(speed) and f"{speed:12.1f}\n" in said
    assert "opensiglip train locca" in page and f"{mean['locating']['mean']:.3f} [" in page


def test_who_stops_it_is_told_how_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "train", stopped)
    monkeypatch.setattr(command, "places", lambda: [""])
    assert main(["study", "objectives", "--out", str(tmp_path / "out")]) == 2
    assert "stopped; the same command continues it" in capsys.readouterr().err


def test_a_folder_holds_one_study(straight: Path) -> None:
    other = replace(SMALLEST, name="other")
    for study, data in ((other, None), (SMALLEST, "scenes:drawings=30,objects=1")):
        with pytest.raises(UserError, match="holds another study"):
            carry_out(study, straight, data=data, seeds=1, budget="cpu-hour")


def test_a_folder_that_is_no_study_s_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "declared.json").write_text("{")
    with pytest.raises(UserError, match="declared.json is damaged, or does not belong to a study; give another --out."):
        carry_out(SMALLEST, tmp_path, data=None, seeds=1, budget="cpu-hour")
    with pytest.raises(UserError, match=r"can't be written to \(Not a directory\); name another folder."):
        carry_out(SMALLEST, tmp_path / "declared.json", data=None, seeds=1, budget="cpu-hour")


def test_what_a_study_lacks_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="smallest has cpu-hour"):
        carry_out(SMALLEST, tmp_path / "out", data=None, seeds=1, budget="gpu-10min")
    with pytest.raises(UserError, match="at least 1"):
        carry_out(SMALLEST, tmp_path / "out", data=None, seeds=0, budget="cpu-hour")
    with pytest.raises(UserError, match="studies are objectives, localization, tasks, encoders"):
        find("nothing")
    with pytest.raises(UserError, match=r"--data FOLDER: run uncurated trains on scenes with exchanged=0.3"):
        carry_out(STUDIES["curation-30"], tmp_path / "out", data="FOLDER", seeds=1, budget="cpu-hour")
    assert STUDIES["curation-30"].runs[1].trains_on("scenes") == "scenes:exchanged=0.3"
    assert STUDIES["curation-60"].runs[1].trains_on("scenes:objects=1") == "scenes:objects=1,exchanged=0.6"
    (tmp_path / "mine.py").write_text("mine = 3")
    with pytest.raises(UserError, match="no study 'mine'"):
        find(f"{tmp_path / 'mine.py'}:mine")
    towers = {"vision": "DINO", "text": "BERT"}
    for name, data, given in (("photographs", "FOLDER", {}), ("photographs", None, towers), ("tasks", None, towers)):
        with pytest.raises(UserError, match="--vision and --text"):
            carry_out(STUDIES[name], tmp_path / "out", data=data, seeds=1, budget="cpu-hour", towers=given)
    assert not (tmp_path / "out").exists()


def test_a_study_answers_by_the_seeds_that_its_hours_reach(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(straight / "seed-0", out / "seed-0")
    trained = list[str]()
    monkeypatch.setattr(engine, "train", lambda recipe, **_: trained.append(recipe))

    def go(hours: float) -> list[tuple[str, int]]:
        jobs = carry_out(SMALLEST, out, data=None, seeds=2, budget="cpu-hour", hours=hours)
        return [(job.run.name, job.seed) for job in jobs]

    assert go(1e-9) == [("comparing", 0), ("locating", 0)] and not trained, "no run of seed 1 was begun"
    shutil.rmtree(out / "seed-0" / "locating")
    with pytest.raises(UserError, match="--hours 1e-09 ended before all runs of seed 0"):
        go(1e-9)
    with pytest.raises(UserError, match="--hours is more than 0"):
        go(0)


def test_the_study_of_photographs_runs_on_any_towers(towers: Path, folder: str, tmp_path: Path) -> None:
    """Each run to its figures; frozen ones read states that were encoded once, whatever the run and the seed."""
    study = STUDIES["photographs"]
    small = dict(study.budgets["cpu-hour"].train) | {"size": "tiny", "steps": 5, "batch_size": 4, "memory_check": False}
    small |= {"workers": 0, "precision": "fp32", "log_every": 1}
    study = replace(study, budgets={"cpu-hour": Budget(small, {"count": 4})})
    start = {"vision": str(towers / "dinov2"), "text": str(towers / "bert-digits")}
    jobs = carry_out(study, tmp_path / "out", data=folder, seeds=1, budget="cpu-hour", towers=start)
    found = columns(study, jobs)
    titles = {column.figure.title: set(column.means) for column in found}
    frozen, tuned = {"sigmoid", "captions", "boxes"}, {"lora", "tuned", "distilled"}
    assert titles["image to text, R@1"] == frozen | tuned and titles["phrases found"] == {"boxes"} | tuned
    assert titles["captions, CIDEr"] == {"captions", "boxes"} | tuned
    for column in found:
        pairs = [step[:2] for step in column.steps]
        assert pairs[-2:] == [("lora", "tuned"), ("lora", "distilled")]
    lines = (tmp_path / "out" / "seed-0" / "distilled" / "metrics.jsonl").read_text().splitlines()
    begun = ["loss/masked_patches" in json.loads(line) for line in lines]
    assert begun == [False] * 4 + [True], "its last fifth"
    places = [path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob(STATES_FILE)]
    assert {path.parts[0] for path in places} == {"features"}
    kinds = sorted(path.parts[1].partition("-")[0] for path in places)
    assert kinds == ["images", "images", "texts"], "images with patch tokens and without"


@pytest.mark.parametrize("study", STUDIES.values(), ids=list(STUDIES))
def test_what_a_study_declares_exists(study: Study) -> None:
    names = [run.name for run in study.runs]
    assert len(set(names)) == len(names) and study.name in STUDIES and set(study.tasks) <= set(BENCHMARKS)
    for figure in study.figures:
        assert set(figure.order) <= set(names) and figure.against in ("", *names)
        assert not (figure.order and figure.against) and not (figure.source and figure.pairs)
        assert {name for pair in figure.pairs for name in pair} <= set(names)
    trainer = {"steps", "batch_size", "lr", "keep", "curate", "chunks", "optimizer", "keep_tokens", "full_from"}
    trainer |= {"score_resolution", "precision", "workers", "freeze", "lora", "tower_lr", "warmup", "languages"}
    for budget in study.budgets.values():
        for number, run in enumerate(study.runs):
            assert run.after is None or run.after in names[:number] and budget.train["keep"]
            assert run.reference is None or run.reference in names[:number]
            flags = {**budget.train, **run.flags}
            build_recipe(RECIPES[run.recipe], {name: value for name, value in flags.items() if name not in trainer})
    assert set(study.budgets) == {"cpu-hour", "gpu-10min"}


# Intervals


def values(scores: Sequence[float], clusters: Sequence[int] | None = None) -> dict[str, Any]:
    """What an evaluation keeps of a figure."""
    return split_values(mean_with_interval("x", list(scores), clusters or list(range(len(scores)))))[1]["x"]


def test_with_one_seed_the_interval_is_that_of_the_evaluation() -> None:
    rng = np.random.default_rng(3)
    clusters = rng.integers(40, size=100).tolist()
    one, other = (values(rng.random(100), clusters) for _ in range(2))
    direct = mean_with_interval("x", other["scores"], clusters)
    assert mean_over_seeds([other]) == pytest.approx((direct["x"], *direct["x_ci95"]))
    assert mean_over_seeds([other], [one]) == pytest.approx(paired_difference(other, one))


def test_what_seeds_differ_by_is_in_the_interval_and_what_they_share_cancels() -> None:
    rng = np.random.default_rng(0)
    images, levels = rng.random(300), (0.2, 0.5, 0.8)
    low = [values(0.1 * images + level) for level in levels]
    high = [values(0.1 * images + level + 0.05) for level in levels]
    mean = mean_over_seeds(low)
    assert mean.low < 0.4 and mean.high > 0.7, "seeds 0.3 apart"
    gain = mean_over_seeds(high, low)
    assert gain == pytest.approx((0.05, 0.05, 0.05)), "every seed and image gains alike"


def test_two_seeds_alone_are_as_far_apart_as_their_spread_says() -> None:
    """Their deviation is |a - b| / sqrt(2), of which drawing two of two again shows half the variance."""
    reached = 0.5 * 2**0.5
    assert mean_over_seeds([values([0] * 10), values([1] * 10)]) == pytest.approx((0.5, 0.5 - reached, 0.5 + reached))


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """Five seeds and fifty images, both with an effect of their own, drawn 200 times: 95 % of the time, nearly."""
    rng, hits = np.random.default_rng(1), 0
    for _ in range(200):
        scores = rng.normal(size=(5, 1)) + rng.normal(size=50) + rng.normal(size=(5, 50))
        found = mean_over_seeds([values(row) for row in scores])
        hits += found.low < 0 < found.high
    assert 0.85 < hits / 200 < 0.99


def test_seeds_judged_on_other_examples_are_refused() -> None:
    with pytest.raises(ValueError, match="not evaluated on the same"):
        mean_over_seeds([values([0, 1, 1], [0, 0, 1]), values([0, 1, 1], [0, 1, 1])])
    with pytest.raises(ValueError, match="not evaluated on the same"):
        mean_over_seeds([values([0, 1, 1])], [values([0, 1])])


def test_the_answer_counts_what_came_out() -> None:
    figure = Figure("t", "n", "found", ("a", "b", "c"), "A paper")
    means = {name: Interval(value, 0, 1) for name, value in (("a", 0.1), ("b", 0.3), ("c", 0.2))}
    steps = [("a", "b", Interval(0.2, 0.1, 0.3)), ("b", "c", Interval(-0.1, -0.2, -0.05))]
    ranked = [("a", "c", Interval(0.1, 0.05, 0.2)), ("c", "b", Interval(0.1, 0.02, 0.2))]
    said = Column(figure, means, {}, steps, ranked).sentence
    assert said.startswith("found: a 0.100 < c 0.200 < b 0.300. A paper has a < b < c: of 2 neighbours 1 as there")
    assert "1 reversed" in said
    steps = [("a", "b", Interval(0.0, -0.1, 0.1)), ("b", "c", Interval(0.1, 0.05, 0.2))]
    plain = Column(replace(figure, source=""), means, {}, steps, ranked).sentence
    assert plain.endswith("b against a: inconclusive; c against b: higher.")


def test_a_figure_compares_another_metric_of_some_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runs = (Run("plain", "siglip"), Run("cut", "siglip"))
    figure = Figure("t", "n", "a quarter against all", ("plain", "cut"), by_run={"cut": "n_at_16"})
    study = Study("s", "?", "", "scenes", runs, (figure,), {})
    scores = {"n": [1.0, 1.0, 0.0, 1.0], "n_at_16": [1.0, 0.0, 0.0, 1.0]}
    kept = {("t", name): values(some) for name, some in scores.items()}
    loaded = {"values": kept, "metrics": {("t", name): (float(np.mean(some)),) for name, some in scores.items()}}
    monkeypatch.setattr("studies.answer.results.load", lambda path: loaded)
    [column] = columns(study, [SimpleNamespace(run=run, folder=tmp_path / run.name) for run in runs])  # type: ignore[misc]
    assert (column.by_seed, column.steps[0][2].value) == ({"plain": [0.75], "cut": [0.5]}, -0.25)


def test_a_figure_compares_every_run_with_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Image by image: "first" is higher by 0.75 on each, so its interval is that alone; "last" is no such thing."""
    scores = {"first": [0.75, 0.75, 0.75, 1.75], "base": [0.0, 0.0, 0.0, 1.0], "last": [0.5, 0.0, 0.0, 0.0]}
    runs = tuple(Run(name, "siglip") for name in scores)
    figures = Figure("t", "n", "found", against="base"), Figure("t", "m", "that base lacks", against="base")
    study = Study("s", "?", "", "scenes", runs, figures, {})

    def load(path: Path) -> dict[str, Any]:
        name = path.parents[1].name
        kept = {("t", key): scores[name] for key in ("n", "m") if name != "base" or key == "n"}
        metrics = {key: (float(np.mean(some)),) for key, some in kept.items()}
        return {"values": {key: values(some) for key, some in kept.items()}, "metrics": metrics}

    monkeypatch.setattr("studies.answer.results.load", load)
    jobs: Any = [SimpleNamespace(run=run, folder=tmp_path / run.name) for run in runs]
    column, without = columns(study, jobs)
    assert set(without.means) == {"first", "last"} and without.steps == []
    assert [some[:2] for some in column.steps] == [("base", "first"), ("base", "last")]
    first, last = (interval for _, _, interval in column.steps)
    assert first == (0.75, 0.75, 0.75) and last.value == -0.125 and last.low < -0.2 and last.high > 0.1
    assert column.sentence.endswith("first against base: higher; last against base: inconclusive.")


def test_a_figure_is_the_mean_of_all_seeds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By the first seed "b" is 0.2 higher, by the mean of both "a" is 0.1 higher."""
    scores = {("a", 0): 0.4, ("a", 1): 0.8, ("b", 0): 0.6, ("b", 1): 0.4}
    figure = Figure("t", "n", "found", ("a", "b"), "A paper")
    study = Study("s", "?", "", "scenes", (Run("a", "siglip"), Run("b", "siglip")), (figure,), {})

    def load(path: Path) -> dict[str, Any]:
        score = scores[path.parents[1].name, int(path.parents[2].name)]
        return {"values": {("t", "n"): values([score] * 4)}, "metrics": {("t", "n"): (score,)}}

    monkeypatch.setattr("studies.answer.results.load", load)
    jobs: Any = [
        SimpleNamespace(run=run, folder=tmp_path / str(seed) / run.name) for seed in (0, 1) for run in study.runs
    ]
    [column] = columns(study, jobs)
    assert column.by_seed == {"a": [0.4, 0.8], "b": [0.6, 0.4]}
    assert {name: mean.value for name, mean in column.means.items()} == pytest.approx({"a": 0.6, "b": 0.5})
    assert [(*pair, round(interval.value, 9)) for *pair, interval in column.steps] == [("a", "b", -0.1)]
    assert [(*pair, round(interval.value, 9)) for *pair, interval in column.ranked] == [("b", "a", 0.1)]
    assert all(interval.low < interval.value < interval.high for interval in column.means.values())


def test_runs_that_chance_may_order_are_not_ranked() -> None:
    means = {name: Interval(value, 0, 1) for name, value in (("a", 0.31), ("b", 0.30), ("c", 0.5))}
    ranked = [("b", "a", Interval(0.01, -0.02, 0.04)), ("a", "c", Interval(0.19, 0.1, 0.3))]
    column = Column(Figure("t", "n", "found"), means, {}, [], ranked)
    assert column.sentence.startswith("found: b 0.300 ≈ a 0.310 < c 0.500")
    assert [some[:2] for some in column.differences] == [("b", "a"), ("a", "c")]


def test_the_how_to_declares_a_study(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs/how-to/study.md").read_text()
    (tmp_path / "mine.py").write_text(text.partition("```python\n")[2].partition("```")[0])
    study = find(f"{tmp_path / 'mine.py'}:parallel")
    assert [run.name for run in study.runs] == ["0%", "25%", "50%", "75%"]
    for run in study.runs:
        assert build_recipe(RECIPES[run.recipe], dict(run.flags)).tasks == ("cap",)


@pytest.mark.parametrize("name", ["tasks", "encoders"])
def test_the_figures_of_a_study_are_there_for_its_runs(name: str, tmp_path: Path) -> None:
    """A model of one task alone, too; a decoder probe of two sizes."""
    declared = STUDIES[name]
    probe = ProbeConfig(1, ("cap", "aref"), Shape(width=16, depth=1, mlp=32, heads=2) if name == "encoders" else None)
    quick = Budget(
        TINY | {"workers": 0, "vocabulary": 700, "steps": 1}, {"count": 8, "train_count": 16, "probe": probe}
    )
    study = replace(declared, budgets={"cpu-hour": quick})
    found = columns(study, carry_out(study, tmp_path, data=None, seeds=1, budget="cpu-hour"))
    assert [column.figure for column in found] == list(declared.figures)
    runs = {run.name for run in declared.runs}
    assert [set(column.means) for column in found] == [set(figure.order) or runs for figure in declared.figures]


def test_each_process_of_several_devices_sees_one_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE, "4,7")
    assert set(spread(os.getenv, [VISIBLE] * 4, ["4", "7"])) <= {"4", "7"} and os.environ[VISIBLE] == "4,7"
    assert list(spread(os.getenv, [VISIBLE] * 2, ["4"])) == ["4,7"] * 2, "one device: in this process"


def test_without_a_gpu_runs_share_the_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    assert len(places()) == (torch.cuda.device_count() or 5)
    assert list(spread(threads, [1, 2], ["", ""])) == [2, 2], "five threads shared by two"


def test_a_run_in_such_a_process_reads_data_in_processes_of_its_own(tmp_path: Path) -> None:
    """What a step needs has to go into a fresh process, not a forked one alone."""
    flags = TINY | {"workers": 1, "vocabulary": 700, "held_out": 0}
    budget = Budget(flags, SMALLEST.budgets["cpu-hour"].judge)
    study = replace(SMALLEST, figures=SMALLEST.figures[1:], budgets={"cpu-hour": budget})
    jobs = carry_out(study, tmp_path, data=None, seeds=1, budget="cpu-hour", places=["", ""])
    assert len(figures(tmp_path)) == len(jobs) == 2


@pytest.mark.parametrize(("by", "work"), [(signal.SIGKILL, "linger"), (signal.SIGINT, "linger_until_asked")])
def test_runs_end_with_the_study_that_was_ended(tmp_path: Path, by: signal.Signals, work: str) -> None:
    """A process left behind would write into the folders of the study that goes on; and no other run begins."""
    code = f"import signal\nfrom studied import {work}\nfrom studies.devices import spread\n"
    code += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
    code += f"if __name__ == '__main__': list(spread({work}, [{str(tmp_path)!r}] * 4, ['', '']))\n"
    (tmp_path / "study.py").write_text(code)
    path = os.pathsep.join(sys.path)
    study = subprocess.Popen(
        [sys.executable, tmp_path / "study.py"], env=os.environ | {"PYTHONPATH": path}, stderr=subprocess.DEVNULL
    )
    while len(left := list(tmp_path.glob("*.pid"))) < 2:
        assert study.poll() is None
        time.sleep(0.1)
    study.send_signal(by)
    study.wait(timeout=60)
    until = time.monotonic() + 20
    while any(Path("/proc", file.stem).exists() for file in left):
        assert time.monotonic() < until, "still running"
        time.sleep(0.1)
    assert [file.read_text().count("begun") for file in left] == [1, 1], "a further run began"
