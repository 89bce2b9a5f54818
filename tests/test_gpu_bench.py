"""`opensiglip bench gpu` at small sizes on the CPU: its figures, its goals, and what it does where something fails."""

import json
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import gpu_loader, gpu_losses, gpu_steps, lm_head
from benchmarks.goals import LATE, Figure, Goal, mfu, reason, time_bound
from benchmarks.gpu import measured
from benchmarks.gpu_parts import BATCH, PAIRS, PARTS, SIZES, VOCABULARIES, Part, has_goals, parts_of
from benchmarks.gpu_setting import Found, Setting
from benchmarks.measure import Row, Variant
from opensiglip.apps.cli import main
from opensiglip.models.decoder import Decoder
from opensiglip.models.sizes import HeadShape
from opensiglip.training.learner import denominators

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SMALL = Setting(("32x2x64x2/4", "32x1x64x2/4"), 2, 2, (50, 90), 48, False, 0, 1, CPU)
GOALS = replace(SMALL, sizes=SIZES, batch=BATCH, vocabularies=VOCABULARIES, pairs=PAIRS, place=CUDA)
WORDS = "--sizes 32x2x64x2/4 32x1x64x2/4 --images 2 --batch 2 --vocabularies 50 90 --pairs 48 --rounds 1 --workers 0"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No repeats, small products, and few prototypes."""
    monkeypatch.setattr("benchmarks.measure.SHORTEST", 0.0)
    monkeypatch.setattr("benchmarks.measure.PRODUCT", {"cpu": 64})
    monkeypatch.setattr("benchmarks.gpu_setting.head", lambda size: HeadShape(32, 16, 48))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def ran(out: Path, *words: str) -> dict[str, Any]:
    assert main(["bench", "gpu", *WORDS.split(), "--device", "cpu", *words, "--out", str(out)]) == 0
    assert (out / "gpu.png").stat().st_size > 1000
    return json.loads((out / "gpu.json").read_text())


def row(variant: str, seconds: float = 1.0, peak: float | None = None, **facts: Any) -> Row:
    return Row("case", variant, seconds, seconds, seconds, peak, 1.0, None, None, facts)


def plant(monkeypatch: pytest.MonkeyPatch, **rows: Row) -> None:
    """Rows in place of measurements, by a word of their variants' names."""

    def timed(case: str, variants: list[Variant], *_: Any) -> list[Row]:
        return [replace(planted, variant=v.name) for v in variants for word, planted in rows.items() if word in v.name]

    monkeypatch.setattr("benchmarks.gpu_setting.compare", timed)


def test_every_goal_is_measured_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, said = ran(tmp_path, "--no-compile"), capsys.readouterr().out
    assert {figure["number"] for figure in made["figures"]} == {"G1", "G2", "G3", "G4", "G5", "G6", ""}
    missing = {figure["why"] for figure in made["figures"] if figure["value"] is None}
    words = {f"{kernel}: it needs a CUDA device" for kernel in ("liger-kernel", "cut-cross-entropy")}
    assert missing == {"this device is no H200", "--no-compile was given"} | words
    assert all(figure["reached"] is None for figure in made["figures"]) and "not judged" in said
    for figure in made["figures"]:
        assert figure["what"] in said and (figure["value"] is None or figure["value"] > 0 or figure["unit"] == "GiB")
    size, cases = "32x2x64x2/4", {row["case"] for row in made["rows"]}
    both = {f"{step} {size}, V {words}" for step in ("siglip + locca", "siglip2") for words in (50, 90)}
    assert both | {"head V 90 T 146", f"memory {size}, V 90, batch 2", f"decoder {size}, V 50"} < cases
    rows = {(row["case"].partition(",")[0], row["variant"]): row for row in made["rows"]}
    images = next(f["value"] for f in made["figures"] if f["what"] == "siglip 32x2x64x2/4")
    step = rows["siglip 32x2x64x2/4", "opensiglip siglip, eager"]
    assert images == pytest.approx(step["per_second"]) == pytest.approx(2 / step["seconds"])
    loss, took = rows["sigmoid 48", "opensiglip"], next(f for f in made["figures"] if f["what"].endswith("48: time"))
    assert took["unit"] == "ms" and took["value"] == pytest.approx(1e3 * loss["seconds"])
    assert {"open_clip SigLIP, eager", "transformers + naive captions, eager"} <= {
        row["variant"] for row in made["rows"]
    }
    assert [figure["what"] for figure in made["figures"]] == [
        goal.what for part in parts_of(SMALL, PARTS) for goal in part.goals.values()
    ]


@pytest.mark.parametrize(
    ("value", "at_most", "reached", "factor"),
    [(3.0, False, True, 1.5), (1.0, False, False, 0.5), (2.0, False, True, 1), (2.0, True, True, 1)]
    + [(4.0, True, False, 0.5), (1.0, True, True, 2), (-1.0, True, True, None), ("out of memory", True, None, None)],
)
def test_a_goal_is_reached_or_not_and_by_a_factor(
    value: float | str, at_most: bool, reached: bool | None, factor: float | None
) -> None:
    figure = Figure(Goal("G9", "a thing", "ms", 2.0, at_most), value)
    assert (figure.reached, figure.factor) == (reached, factor)
    assert ("not reached" in str(figure)) == (reached is False) and ("reached" in str(figure)) == (reached is not None)
    assert ("not measured, out of memory" in str(figure)) == (value == "out of memory")
    others = [Figure(figure.goal, value, judged=False), Figure(replace(figure.goal, bound=None), value)]
    assert all(other.reached is None and other.factor is None for other in others)
    assert figure.to_json()["value"] == (None if isinstance(value, str) else value)


def test_goals_are_for_a_gpu_and_the_default_sizes() -> None:
    assert has_goals(GOALS) and has_goals(replace(GOALS, images=32, rounds=9))
    changed: list[dict[str, Any]] = [{"place": CPU}, {"sizes": ("B/16",)}, {"batch": 2}, {"vocabularies": (2, 3)}]
    for one in (*changed, {"pairs": 2}):
        assert not has_goals(replace(GOALS, **one))


def test_bounds_are_those_that_were_set() -> None:
    """As the table of docs/benchmarks.md has them. Time, memory and ratios to another's time are to be at most so."""
    bounds = [
        ("G1", "MFU of siglip B/16, of this device's bf16 product", 0.45, False),
        ("G1", "MFU of siglip B/16, of an H200's 790 TFLOP/s", 0.45, False),
        ("G2", "siglip B/16", 2050, False),
        ("G3", "siglip against open_clip's step", 1.2, False),
        ("G3", "siglip compiled against eager", 1.3, False),
        ("G4", "sigmoid, N = 65536: time", 50, True),
        ("G4", "sigmoid, N = 65536: memory", 1.5, True),
        ("G5", "head, V = 256000, 75000 tokens: time", 1.35, True),
        ("G5", "head, V = 256000, 75000 tokens: memory beyond dW", 1, True),
        ("G5", "head, V = 256000, 75000 tokens: time", 1.1, True),
        ("G5", "head, V = 256000, 75000 tokens: time", 1.1, True),
        ("G2", "siglip + locca B/16, V = 32000", 1600, False),
        ("G3", "siglip + locca against transformers and naive captions", 2.5, False),
        ("G2", "siglip + locca B/16, V = 256000", 1200, False),
        ("G1", "MFU of siglip L/16, of this device's bf16 product", 0.55, False),
        ("G1", "MFU of siglip L/16, of an H200's 790 TFLOP/s", 0.55, False),
        ("G6", "siglip + locca B/16, V = 256000, batch 1024: memory of the head beyond dW", 1, True),
        ("G2", "siglip2 B/16 with distillation, V = 32000", 650, False),
        ("G2", "siglip2 B/16 with distillation, V = 256000", 570, False),
        ("", "siglip: the loader's images/s", 1, False),
        ("", "siglip2 with distillation: the loader's images/s", 1, False),
    ]
    goals = [goal for part in parts_of(GOALS, PARTS) for goal in part.goals.values()]
    assert [(g.number, g.what, g.bound, g.at_most) for g in goals if g.bound is not None] == bounds


def test_mfu_is_the_flop_over_time_and_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mfu(6e12, 2.0, 10e12) == pytest.approx(0.3)
    found, variants = Found(), [Variant("other", list, 1e12), Variant("ours", list, 79e12)]
    found.utilise(variants, row("ours", 0.5, **{"GFLOP/s": 316_000}), CPU)
    assert found.values == {"mfu": pytest.approx(0.5), "mfu, h200": "this device is no H200"}
    for name, share in (("NVIDIA H200", pytest.approx(0.2)), ("NVIDIA A100", "this device is no H200")):
        monkeypatch.setattr("torch.cuda.get_device_name", lambda name=name: name)
        found.utilise(variants, row("ours", 0.5, **{"GFLOP/s": 316_000}), CUDA)
        assert found.values == {"mfu": pytest.approx(0.5), "mfu, h200": share}


def test_a_step_is_compared_with_the_faster_of_a_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = list[Any]()

    def compile(function: Any, **_: Any) -> Any:
        compiled.append(function)
        return function

    monkeypatch.setattr(torch, "compile", compile)
    rate, setting = {"GFLOP/s": 1}, replace(SMALL, compile=True)
    ours = {"siglip, eager": row("", 4.0, **rate), "siglip, compiled": row("", 2.0, **rate)}
    plant(monkeypatch, **ours, **{"SigLIP, eager": row("", 6.0), "SigLIP, compiled": row("", 5.0)})
    found, paces = Found(), gpu_steps.Paces()
    gpu_steps.siglip(setting, paces, found)
    assert found.left_out == {} and paces == {"siglip": 1.0} and len(compiled) == 2, "ours, and theirs"
    figures = {name: found.values[name] for name in ("open_clip", "compile", "images")}
    assert figures == {"open_clip": 2.5, "compile": 2.0, "images": 1.0}


def test_what_is_not_installed_or_too_large_is_said_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(case: Any) -> Variant:
        raise ModuleNotFoundError("no module", name="open_clip.model")

    def large(case: Any) -> Variant:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried ...")

    def broken(*_: Any) -> Any:
        raise RuntimeError("no kernel\nfor this device")

    monkeypatch.setattr(gpu_steps, "open_clip_step", missing)
    monkeypatch.setattr(gpu_steps, "naive_captions_step", large)
    monkeypatch.setattr("benchmarks.sigmoid.losses_of", broken)
    made = ran(tmp_path, "--no-compile", "--parts", "siglip", "sigmoid", "locca")
    why = {f"{figure['number']} {figure['what']}": figure["why"] for figure in made["figures"]}
    assert why["G3 siglip against open_clip's step"] == "open_clip SigLIP, eager: open_clip is not installed"
    naive = "transformers + naive captions, eager: out of memory"
    assert why["G3 siglip + locca against transformers and naive captions"] == naive
    assert why["G4 sigmoid, N = 48: time"] == why["G4 sigmoid, N = 48: memory"] == "RuntimeError: no kernel"
    measured = [figure for figure in made["figures"] if figure["number"] == "G2"]
    assert len(measured) == 3 and all(figure["value"] > 0 for figure in measured)
    assert {"variant": "open_clip SigLIP, eager", "why": "open_clip is not installed"} in made["left_out"]
    assert f"left out: {naive.replace(': ', ', ')}" in capsys.readouterr().out


def test_of_no_memory_for_ours_the_figures_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def large(case: Any) -> Variant:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(gpu_steps, "captioning", large)
    found = Found()
    gpu_steps.locca(SMALL, 50, False, found)
    assert found.value("images") == "opensiglip siglip + locca, eager: out of memory" and found.rows == []


def test_reasons_are_words() -> None:
    assert reason(MemoryError()) == "out of memory"
    assert reason(ImportError("no such name", name="open_clip")) == "ImportError: no such name"
    assert reason(ValueError()) == "ValueError: "


def test_where_compiling_fails_the_eager_step_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no triton")

    monkeypatch.setattr(torch, "compile", broken)
    found = Found()
    gpu_steps.larger(replace(SMALL, compile=True), SMALL.sizes[1], found)
    assert [row.variant for row in found.rows] == ["opensiglip siglip, eager"] and found.values["mfu"]
    assert found.left_out == {"opensiglip siglip, compiled": "RuntimeError: no triton"}


def test_without_time_all_is_listed_as_not_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = ran(tmp_path, "--minutes", "0")
    goals = [goal for part in parts_of(SMALL, PARTS) for goal in part.goals.values()]
    assert [figure["why"] for figure in made["figures"]] == [LATE] * len(goals) and made["rows"] == []
    assert f"0 goals reached, 0 not; {len(goals)} not measured" in capsys.readouterr().out


def test_a_part_that_takes_too_long_is_cut_and_what_it_found_stays() -> None:
    def slow(found: Found) -> None:
        found.values["one"] = 1.0
        for _ in range(100):
            try:  # as libraries do that go on with something else after an error
                time.sleep(0.05)
            except Exception:
                continue

    began = time.monotonic()
    found = measured(Part({}, slow), 0.1)
    assert time.monotonic() - began < 4 and found.value("one") == 1 and found.value("two") == LATE


def test_the_timer_of_who_called_goes_on() -> None:
    def ring(*_: Any) -> None:
        raise AssertionError

    handler, (left, every) = signal.signal(signal.SIGALRM, ring), signal.setitimer(signal.ITIMER_REAL, 1000.0)
    try:
        with time_bound(500.0):
            assert 499 < signal.getitimer(signal.ITIMER_REAL)[0] <= 500
        assert 990 < signal.getitimer(signal.ITIMER_REAL)[0] <= 1000 and signal.getsignal(signal.SIGALRM) is ring
    finally:
        signal.setitimer(signal.ITIMER_REAL, left, every)
        signal.signal(signal.SIGALRM, handler)


def test_the_heads_memory_is_the_difference_without_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, locca=row("", peak=3072.0))
    found, cases, step = Found(), list[Any](), gpu_steps.checkpointed

    def noted(case: Any, *, head: bool) -> Variant:
        cases.append((case.images, case.vocabulary, head))
        return step(case, head=head)

    monkeypatch.setattr(gpu_steps, "checkpointed", noted)
    gpu_steps.memory(replace(SMALL, batch=3), 90, found)
    assert cases == [(3, 90, True), (3, 90, False)]
    weights = 4 * 90 * 32 / 2**30
    assert found.left_out == {} and found.values == {"step": 3.0, "head": pytest.approx(-weights)}
    assert gpu_steps.beyond(3072.0, 2**28, without=512.0) == pytest.approx(1.5)
    assert gpu_steps.beyond(None, 1) == "the system does not tell"


def test_the_steps_whose_memory_is_compared_differ_in_the_head_alone() -> None:
    """Both form their activations again, and both have a gradient at every other weight."""
    case, reached = SMALL.case(SMALL.sizes[0], 90), []
    batch = case.batch(3, 0.5)
    for head in (True, False):
        learner = gpu_steps.checkpointed_learner(case, head=head)
        learner(batch, denominators(learner, [batch]).float())[0]["loss"].backward()
        reached.append({name for name, p in learner.named_parameters() if p.grad is not None})
        assert isinstance(learner.model.decoder, Decoder) and learner.model.decoder.checkpointing
    assert len(reached[1]) > 40 and any(name.startswith("model.decoder") for name in reached[1])
    assert reached[0] - reached[1] == {f"model.decoder.vocabulary.{name}" for name in ("weight", "bias")}


def test_the_loader_is_held_against_the_faster_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    paces = gpu_steps.Paces()
    for seconds in (1.0, 4.0):
        plant(monkeypatch, siglip2=row("", seconds))
        gpu_steps.full(SMALL, 50, paces, Found())
    assert paces == {"siglip2": 2.0}


def test_parts_share_the_minutes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = list[float]()

    def noted(part: Part, seconds: float) -> Found:
        given.append(seconds)
        time.sleep(0.05)
        return Found()

    monkeypatch.setattr("benchmarks.gpu.measured", noted)
    ran(tmp_path, "--minutes", "1", "--parts", "siglip", "sigmoid")
    assert 60 >= given[0] >= given[1] + 0.05


def test_a_kernel_is_given_bf16_and_left_out_where_it_computes_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, given = lm_head.heads_of(CPU)[lm_head.PLAIN], set[torch.dtype]()

    def kernel(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        given.update((hidden.dtype, weight.dtype))
        return plain(hidden, weight, targets)

    heads: dict[str, lm_head.Head] = {"opensiglip": plain, lm_head.PLAIN: plain, "liger-kernel": kernel}
    heads["cut-cross-entropy"] = lambda *inputs: 2 * plain(*inputs)
    monkeypatch.setattr(lm_head, "heads_of", lambda place: heads)
    found = Found()
    gpu_losses.vocabulary_head(SMALL, 50, 20, found)
    assert given == {torch.bfloat16} and isinstance(found.values["liger-kernel"], float)
    assert "it does not do the same work" in found.left_out["cut-cross-entropy"]
    assert found.values["cut-cross-entropy"] == f"cut-cross-entropy: {found.left_out['cut-cross-entropy']}"


def test_the_full_step_has_all_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    names = list[str]()

    def noted(setting: Setting, found: Found, name: str, case: Any, make: gpu_steps.Make) -> list[Variant]:
        names.append(make(case).name)
        return []

    monkeypatch.setattr(gpu_steps, "one_way", noted)
    gpu_steps.full(SMALL, 50, {}, Found())
    assert names == ["siglip2, all"]


def test_the_loader_is_held_against_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(batches: Iterator[Any], count: int) -> tuple[float, None]:
        return 4.0 * len(list(islice(batches, count))), None

    monkeypatch.setattr(gpu_loader, "timed", timed)
    found = Found()
    gpu_loader.loaded(SMALL, {"siglip": 0.25}, found)
    assert found.values == {"siglip": pytest.approx(2.0), "siglip2": "the step was not measured"}
    assert [row.per_second for row in found.rows] == [0.5, 0.5]


def test_batches_of_the_last_stage_have_all_views(tmp_path: Path) -> None:
    from benchmarks.input import made_photographs
    from benchmarks.shards import write_folder
    from opensiglip.data.loader import Steps

    (picture,) = made_photographs(tmp_path, 1)
    write_folder(tmp_path / "source", [picture.read_bytes()], 2)
    steps = Steps(gpu_loader.plan_of("siglip2", tmp_path / "source", SMALL))
    first, last = steps[0].parts[0], steps[gpu_loader.LAST_STAGE].parts[0]
    assert "local" not in first and last["local"].shape[:2] == (2, 8) and last["image"].shape == (2, 3, 64, 64)
