"""What a run leaves behind, what it takes for granted, and when it stops."""

import functools
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from conftest import SHAPE, Run, Small
from PIL import Image
from safetensors.torch import load_file

from opensiglip.apps.cli import main
from opensiglip.checkpoints.run_folder import RunFolder
from opensiglip.data.example import Caption, Example, Region
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.json_file import SIDECAR
from opensiglip.models.model import Model
from opensiglip.models.sizes import Architecture, Shape
from opensiglip.objectives.contrastive import Sigmoid
from opensiglip.optim import adamw, matrices, rate
from opensiglip.training import gradient
from opensiglip.training import loop as loop_module
from opensiglip.training import run as run_module
from opensiglip.training.config import TrainConfig
from opensiglip.training.finish import count_parameters, first_and_last
from opensiglip.training.health import PATIENCE, Diverged
from opensiglip.training.held_out import HeldOut
from opensiglip.training.learner import Learner
from opensiglip.training.log import EVERY_STEP_BELOW, Log, finite, read_lines
from opensiglip.training.loop import Loop
from opensiglip.training.precision import multiply
from opensiglip.training.record import command
from opensiglip.training.run import train
from opensiglip.training.tries import questions, tries
from opensiglip.types import Features

STEPS = 6


@pytest.fixture(scope="module")
def out(run: Run, folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run on pictures one of which is broken. Not to be written to."""
    root = tmp_path_factory.mktemp("train")
    shutil.copytree(folder, root / "data")
    (root / "data" / "7.png").write_bytes(b"no image")
    run(root / "run", data=[str(root / "data")], held_out=4)
    return root / "run"


def without_rate(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "images_per_second"} for row in rows]


def test_a_run_leaves_its_files(out: Path) -> None:
    assert {path.name for path in out.iterdir()} == {
        *(
            "config.json",
            "metrics.jsonl",
            "summary.json",
            "report.html",
            "seen.safetensors",
            "start",
            "checkpoints",
            "model",
            "stages",
            "example.png",
        )
    }
    assert (out / "report.html").read_text().lstrip().lower().startswith("<!doctype html>")
    assert (out / "model" / "model.safetensors").is_file()


def test_the_start_up_line_counts_true_negatives(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten of five examples, two of which show one image: 6 others for each of its 4, 8 for each of the other 6."""
    for name, colour in zip("abcd", ("red", "green", "blue", "white"), strict=True):
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"{name}.png")
    rows = [("a", "left"), ("a", "right"), ("b", ""), ("c", ""), ("d", "")]
    lines = [{"file_name": f"{name}.png", "caption": name, "label": label, "split": "train"} for name, label in rows]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    run(tmp_path / "run", data=[str(tmp_path)], steps=1, batch_size=10)
    assert "batch       10 images a step, 7.2 negatives for each image on average" in capsys.readouterr().out


def test_the_commands_that_a_run_names_at_its_end_run(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predict, demo, mine = (shlex.split(words)[1:] for words in json.loads((out / "summary.json").read_text())["next"])
    assert main(predict) == 0
    assert str(out / "example.png") in capsys.readouterr().out
    assert demo == ["demo", str(out)] and mine[0] == "train"
    data = str(out.parent / "data")
    assert main([*(data if word == "FOLDER" else word for word in mine), "--dry-run"]) == 0
    assert "8 images a step" in capsys.readouterr().out, "the run's own batch"


def test_a_run_in_the_folder_where_one_stands_names_a_folder_beside_it() -> None:
    model: Any = SimpleNamespace(text=None)
    for folder, mine in ((".", "../mine"), ("runs/one", "runs/mine")):
        *_, words = tries(RunFolder(Path(folder)), "cap", model, (), None)
        assert shlex.split(words)[-2:] == ["--out", mine]


def test_metrics_have_one_row_per_step(out: Path) -> None:
    rows = read_lines(out / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(STEPS))
    keys = {"step", "loss", "loss/sigmoid", "loss/caption", "lr", "grad_norm", "images_per_second"}
    keys |= {"logit_scale", "logit_bias"}
    weights = {"local_to_global": 0.25, "masked_patches": 0.0625}
    said = ("kl", "teacher_entropy", "teacher_information", "prototypes_used", "centre_norm")
    late = {f"loss/{name}" for name in weights} | {f"{name}/{what}" for name in weights for what in said}
    for row in rows:
        taught = row["step"] / STEPS >= 0.8
        assert set(row) == keys | (late if taught else set())
        assert all(math.isfinite(value) for value in row.values())
        extra = sum(row[f"loss/{name}"] * weight for name, weight in weights.items()) if taught else 0
        assert row["loss"] == pytest.approx(row["loss/sigmoid"] + row["loss/caption"] + extra, rel=1e-6)
    vocabulary = json.loads((out / "model" / SIDECAR).read_text())["vocabulary"]
    assert rows[0]["loss/caption"] == pytest.approx(math.log(vocabulary), rel=1e-5)  # the output layer starts at zero


def test_later_rows_come_every_so_many_steps_and_at_the_last(tmp_path: Path) -> None:
    class Alone:
        is_main_process = True

        def log(self, values: dict[str, float], step: int) -> None:
            assert "step" not in values

    log = Log(Alone(), tmp_path / "metrics.jsonl", 0, 234, every=10)
    for step in range(234):
        log.step(step, {"loss": 1.0}, images=8)
    log.close()
    steps = [row["step"] for row in read_lines(tmp_path / "metrics.jsonl")]
    assert steps == [*range(EVERY_STEP_BELOW), 200, 210, 220, 230, 233]


def test_the_config_repeats_the_run(out: Path, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command in config.json, given to the command line, calls train with the same arguments."""
    called: dict[str, Any] = {}

    @functools.wraps(train)
    def record(recipe: str, **keywords: Any) -> dict[str, Any]:
        called.clear()
        called.update(recipe=recipe, **keywords)
        return {}

    monkeypatch.setattr(run_module, "train", record)
    config = json.loads((out / "config.json").read_text())
    assert set(config["versions"]) >= {"opensiglip", "torch", "python"}
    assert config["command"] == command(config, out)
    two_sources = {"data": ["scenes:objects=3", "my folder"], "trackers": ["tensorboard"], "epochs": 0.5, "steps": None}
    for train_changes, keyword_changes in (({}, {}), (two_sources, {"decoder_bias": True, "logit_bias": "auto"})):
        changed = config | {
            "train": config["train"] | train_changes,
            "keywords": config["keywords"] | keyword_changes,
        }
        program, *words = shlex.split(command(changed, out))
        assert program == "opensiglip"
        assert main(words) == 0
        given = {name: list(value) if isinstance(value, tuple) else value for name, value in called.items()}
        assert Path(given.pop("out")) == out
        assert given.pop("recipe") == config["recipe"] == recipe
        assert given == changed["train"] | changed["keywords"]


def test_the_summary_says_what_happened(out: Path) -> None:
    summary = json.loads((out / "summary.json").read_text())
    rows = read_lines(out / "metrics.jsonl")
    assert summary["steps"] == STEPS and summary["images_seen"] == 8 * STEPS
    assert summary["skipped_steps"] == 0
    assert summary["losses"]["loss"]["first"] == rows[0]["loss"]
    assert summary["losses"]["loss"]["last"] == rows[-1]["loss"], "a tenth of six rows is the last"
    assert summary["held_out"]["examples"] == 4
    assert set(summary["held_out"]) >= {"grounding", "retrieval"}
    assert summary["command"] == json.loads((out / "config.json").read_text())["command"]


@pytest.mark.parametrize(("rows", "count"), [(1, 1), (9, 1), (20, 2), (199, 19), (400, 20)])
def test_first_is_the_first_row_and_last_the_mean_of_the_last_tenth_of_at_most_twenty(rows: int, count: int) -> None:
    early = [{"step": 0, "loss/other": 1.0}, {"step": 1, "loss": None}]
    written = early + [{"step": place, "loss": float(place)} for place in range(2, 2 + rows)]
    found = first_and_last(written, "loss")
    assert found["first"] == 2.0 and found["last"] == pytest.approx(rows + 1 - (count - 1) / 2)
    assert first_and_last(early, "loss") == {"first": None, "last": None}


def test_the_start_up_line_counts_what_it_names(small: Small, pipeline: TextPipeline) -> None:
    """A probe without a teacher is no "heads and teacher"; a teacher is counted with its heads, once."""
    silc = Learner.new(small("silc", prototypes=8), pipeline)
    vision = sum(p.numel() for p in silc.model.vision.parameters())
    head = sum(p.numel() for p in silc.objectives["local_to_global"].head.parameters())
    found = count_parameters(silc)
    assert found["vision"] == vision and found["objectives"] == head and found["EMA teacher"] == vision + head
    assert found["total"] == sum(p.numel() for p in silc.parameters())
    probe = count_parameters(Learner(silc.model, [Sigmoid(probe_width=SHAPE.width)]))
    assert set(probe) == {"vision", "text", "objectives", "total"} and probe["objectives"] == SHAPE.width
    assert set(count_parameters(Learner(silc.model, [Sigmoid()]))) == {"vision", "text", "total"}


def test_a_broken_image_is_counted_and_another_takes_its_place(out: Path) -> None:
    skipped = json.loads((out / "summary.json").read_text())["skipped_examples"]
    assert skipped == {"image can't be decoded": 2}  # two epochs of 24 examples
    said = json.loads((out / "summary.json").read_text())["figures"]  # which the terminal and the report show
    assert said["left out, each time that it was read"] == "image can't be decoded: 2"
    state = json.loads((out / "checkpoints" / f"step-{STEPS:08d}" / "state.json").read_text())
    assert state["skipped_examples"] == skipped and state["read"] == 8 * STEPS


def test_a_run_stops_where_over_a_tenth_is_broken(run: Run, folder: str, tmp_path: Path) -> None:
    data = shutil.copytree(folder, tmp_path / "data")
    for number in (0, 3, 6, 11):
        (data / f"{number}.png").write_bytes(b"no image")
    with pytest.raises(
        UserError, match=r"\d+ of \d+ examples read are broken \(\d+ x image can't be decoded\); fix or remove"
    ):
        run(tmp_path / "run", data=[str(data)], steps=20)
    assert 5 <= len(read_lines(tmp_path / "run" / "metrics.jsonl")) < 20  # not judged before fifty were read


def test_data_without_held_out_rows_is_refused_before_anything_is_written(
    run: Run, folder: str, tmp_path: Path
) -> None:
    data = shutil.copytree(folder, tmp_path / "data")
    rows = (data / "metadata.jsonl").read_text()
    (data / "metadata.jsonl").write_text(rows.replace('"val"', '"test"'))
    with pytest.raises(UserError, match=r"--held-out 4: .* has no row in split 'val' .*; give --held-out 0"):
        run(tmp_path / "run", data=[str(data)], held_out=4)
    assert not (tmp_path / "run").exists()


def test_the_same_seed_gives_the_same_run_and_another_another(run: Run, folder: str, tmp_path: Path) -> None:
    for name, seed in {"first": 0, "again": 0, "other": 1}.items():
        run(tmp_path / name, seed=seed, steps=3)
    first, again, other = (
        without_rate(read_lines(tmp_path / name / "metrics.jsonl")) for name in ("first", "again", "other")
    )
    assert first == again
    assert first[0]["loss"] != other[0]["loss"]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # Python 3.12's, of a fork
def test_data_processes_change_nothing(run: Run, tmp_path: Path) -> None:
    for workers in (0, 2):
        run(tmp_path / str(workers), workers=workers, steps=3)
    alone, helped = (without_rate(read_lines(tmp_path / name / "metrics.jsonl")) for name in ("0", "2"))
    assert alone == helped


def test_epochs_are_passes_over_the_data(run: Run, tmp_path: Path) -> None:
    assert run(tmp_path / "run", steps=None, epochs=1.5)["steps"] == 5  # ceil(1.5 * 24 / 8)


def test_runs_of_one_process_may_differ_in_precision(run: Run, tmp_path: Path) -> None:
    precisions = [run(tmp_path / name, precision=name, steps=1)["precision"] for name in ("bf16", "fp32")]
    assert precisions == ["bf16", "no"]


def test_only_bf16_on_a_gpu_rounds_float32_products(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", told.append)
    for kind, name in (("cpu", "bf16"), ("cuda", "bf16"), ("cuda", "no")):
        multiply(name, torch.device(kind))
    assert told == ["high", "highest"], "and what one run sets, the next one of the process takes back"


def test_a_tracker_gets_the_numbers_and_a_field_for_each_argument(run: Run, tmp_path: Path) -> None:
    run(tmp_path / "run", trackers=["tensorboard"], steps=2)
    assert [path.name for path in (tmp_path / "run" / "opensiglip").rglob("events.out.tfevents.*")] != []
    fields = yaml.safe_load(next((tmp_path / "run").rglob("hparams.yml")).read_text())
    wanted = {"batch_size": 8, "lr": 1e-3, "betas": "0.9 0.95", "parallel": 0.5, "compile": False, "steps": 2}
    assert {name: fields[name] for name in wanted} == wanted
    assert fields["command"].startswith("opensiglip train ") and "epochs" not in fields, "None is left out"


# What decays, and how fast the weights move


def test_weight_decay_applies_to_exactly_the_matrices() -> None:
    shape = Shape(width=16, depth=1, mlp=32, heads=2)
    networks = Architecture(
        resolution=16, patch=8, length=8, vision=shape, text=shape, decoder=shape, decoder_bias=True
    )
    model = Model.new(networks, 50)
    layer = [
        f"{name}.weight"
        for name in (
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.q_proj",
            "self_attn.out_proj",
            "mlp.fc1",
            "mlp.fc2",
        )
    ]
    block = [
        f"{part}.{name}.weight"
        for part in ("self_attention", "cross_attention")
        for name in ("query", "key_value", "out")
    ]
    head = ["attention.in_proj_weight", "attention.out_proj.weight", "mlp.fc1.weight", "mlp.fc2.weight"]
    decayed = {
        "vision.tower.embeddings.patch_embedding.weight",
        *(f"{tower}.tower.encoder.layers.0.{name}" for tower in ("vision", "text") for name in layer),
        *(f"vision.tower.head.{name}" for name in head),
        "text.tower.head.weight",
        *(f"decoder.blocks.0.{name}" for name in [*block, "up.weight", "down.weight"]),
        "decoder.vocabulary.weight",
    }
    assert matrices(model) == decayed
    large = {name for name, parameter in model.named_parameters() if parameter.ndim >= 2}
    assert large - decayed == {  # as large, but no matrices: embeddings, positions and the MAP head's probe
        "vision.tower.embeddings.position_embedding.weight",
        "vision.tower.head.probe",
        "text.tower.embeddings.token_embedding.weight",
        "text.tower.embeddings.position_embedding.weight",
        "decoder.embedding.weight",
        "decoder.position",
    }
    learner = Learner(model, [])
    groups = adamw(learner, 1e-3, 0.1).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)] for p in groups[0]["params"]} == decayed
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert sum(len(group["params"]) for group in groups) == len(names)
    assert groups[0]["betas"] == (0.9, 0.95)


def test_the_schedule_warms_up_linearly_and_falls_as_a_cosine(out: Path) -> None:
    assert [rate(step, 10, 2) for step in range(10)] == pytest.approx(
        [0.0, 0.5, 1.0, 0.96193977, 0.85355339, 0.69134172, 0.5, 0.30865828, 0.14644661, 0.03806023]
    )
    assert rate(0, 10, 0) == 1.0 and rate(10, 10, 2) == pytest.approx(0.0)
    assert [rate(step, 10, 2, rules=1) for step in range(3)] == [0.5, 1.0, 1.0], "of runs that began by them"
    logged = [row["lr"] for row in read_lines(out / "metrics.jsonl")]
    assert logged == pytest.approx([1e-3 * rate(step, STEPS, 0) for step in range(STEPS)])


def test_the_optimizer_gets_the_rate_of_the_schedule_the_decay_asked_for_and_a_clipped_gradient(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What each step of AdamW sees, not what the log says of it."""
    seen: list[tuple[list[float], list[float], float]] = []
    betas: set[tuple[float, float]] = set()
    plain = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, closure: Any = None) -> Any:
        groups = self.param_groups
        betas.update(tuple(group["betas"]) for group in groups)
        grads = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        norm = float(torch.stack([grad.norm() for grad in grads]).norm())
        seen.append(([group["lr"] for group in groups], [group["weight_decay"] for group in groups], norm))
        return plain(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    run(tmp_path / "run", lr=2e-3, warmup=2, weight_decay=0.05, clip_norm=0.01, betas=[0.8, 0.9])
    rows = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert len(seen) == len(rows) == STEPS and betas == {(0.8, 0.9)}
    for number, (row, (lrs, decays, norm)) in enumerate(zip(rows, seen, strict=True)):
        assert lrs == pytest.approx([2e-3 * rate(number, STEPS, 2)] * 2)
        assert decays == [0.05, 0.0]
        assert row["grad_norm"] > 0.02 and norm == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_the_recipes_momentum_reaches_the_teacher(run: Run, tmp_path: Path, momentum: float) -> None:
    """With 0 it is the student, with 1 what the student was when the last stage began."""
    run(tmp_path / "run", steps=10, lr=1e-2, momentum=momentum)
    end = load_file(tmp_path / "run" / "checkpoints" / "step-00000010" / "learner.safetensors")
    start = load_file(tmp_path / "run" / "stages" / "step-00000008.safetensors")
    for name in [name for name in start if name.startswith("vision.")]:
        average = end[f"teacher.copy.{name.removeprefix('vision.')}"]
        assert torch.equal(average, end[f"model.{name}"] if momentum == 0 else start[name]), name
    heads = [end[f"objectives.local_to_global.{head}.layers.0.weight"] for head in ("head", "slow_head.copy")]
    assert torch.equal(*heads) == (momentum == 0)


@pytest.mark.parametrize(("wanted", "expected"), [("auto", -1.9459101), ("-3.5", -3.5), ("-10", -10.0)])
def test_the_bias_starts_where_the_share_of_matching_pairs_or_the_user_says(
    wanted: str, expected: float, run: Run, tmp_path: Path
) -> None:
    """Of batches of 8, one pair in 8 matches: log(1/8 / (7/8)) = -log 7."""
    run(tmp_path / "run", logit_bias=wanted, steps=1, lr=1e-9, batch_size=8)
    assert read_lines(tmp_path / "run" / "metrics.jsonl")[0]["logit_bias"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_tower_stays_in_eval_mode(frozen: bool, small: Small, pipeline: TextPipeline) -> None:
    """An encoder with BatchNorm: its features of an image hang on no other, and its statistics do not move."""

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.width = torch.nn.BatchNorm2d(3), 3

        def forward(self, pixels: torch.Tensor) -> Features:
            tokens = self.norm(pixels).flatten(2).mT
            return Features(tokens.mean(1), tokens)

    learner = Learner.new(small("siglip"), pipeline)
    learner.model.vision = Encoder().requires_grad_(not frozen)
    loop = Loop(Accelerator(cpu=True), learner, *[None] * 2, Path(), 1, 0.1, 1, 1.0, 0, 1, 1)  # type: ignore[arg-type]
    loop.wrap()
    row = HeldOut(None, 1, None)  # type: ignore[arg-type]
    for mode in ("wrapped", "evaluated"):
        if mode == "evaluated":
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(HeldOut, "of", lambda self, model: {})
                row.row(SimpleNamespace(pretrained=SimpleNamespace(model=learner.model)))  # type: ignore[arg-type]
            learner.train()  # as the loop does
        images, others = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8) * 9
        before = learner.model.vision.norm.running_mean.clone()
        alone = learner.model.vision(images).tokens
        beside = learner.model.vision(torch.cat([images, others])).tokens[:4]
        assert torch.allclose(alone, beside) == frozen, mode
        assert torch.equal(before, learner.model.vision.norm.running_mean) == frozen, mode
        assert learner.model.text is not None and learner.model.text.training


def test_one_value_of_several_may_stand_alone() -> None:
    config = TrainConfig(data="scenes", out="run", trackers="tensorboard", keep=0.5)  # type: ignore[arg-type]
    assert (config.data, config.trackers, config.keep) == (("scenes",), ("tensorboard",), (0.5,))
    assert config.to_json()["keep"] == [0.5] and "out" not in config.to_json()


def test_train_is_called_again_and_again_whatever_was_imported_before(run: Run, folder: str, tmp_path: Path) -> None:
    """A loop over seeds; here in a process that has imported all of it, there in one that has imported a part."""
    import opensiglip

    assert opensiglip.train is train
    script = f"""
import opensiglip.training.run
import opensiglip
for seed in (0, 1):
    opensiglip.train("siglip", data={folder!r}, out={str(tmp_path)!r} + f"/{{seed}}", size="16x1x32x1/16",
                     resolution=32, steps=1, batch_size=8, workers=0, held_out=0, vocabulary=300, seed=seed,
                     memory_check=False)
import opensiglip.evaluation.run, opensiglip.training
assert callable(opensiglip.train) and callable(opensiglip.evaluate) and callable(opensiglip.load)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(opensiglip.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", script], check=True, timeout=240, env=environment, capture_output=True)
    first = [read_lines(tmp_path / seed / "metrics.jsonl")[0]["loss"] for seed in "01"]
    assert first[0] != first[1]


# Numbers that are none


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Callable[[set[int]], None]:
    """Make the caption loss of some steps NaN, in the loss and so in every gradient."""

    def poison(steps: set[int]) -> None:
        calls = iter(range(10**6))
        accumulate = gradient.accumulate

        def bad(step: Any, learner: Learner, parts: Any, live: torch.Tensor, *rest: Any) -> Any:
            return accumulate(step, learner, parts, live * (math.nan if next(calls) in steps else 1), *rest)

        monkeypatch.setattr(gradient, "accumulate", bad)

    return poison


@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_that_is_not_finite_is_skipped_counted_and_never_logged_as_a_number(
    run: Run, tmp_path: Path, poisoned: Callable[[set[int]], None], parts: int
) -> None:
    poisoned({2, 3})
    summary = run(tmp_path / "run", save_every=1, steps=4, accumulate=parts)
    assert summary["skipped_steps"] == 2
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    rows = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [row["loss"] is None for row in rows] == [False, False, True, True]
    assert rows[2]["loss/caption"] is None and rows[2]["grad_norm"] is None
    third, fourth = (tmp_path / "run" / "checkpoints" / f"step-0000000{step}" for step in (3, 4))
    for file in ("learner.safetensors", "optimizer.safetensors"):
        before, after = load_file(third / file), load_file(fourth / file)
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert all(tensor.isfinite().all() for tensor in after.values())
    assert json.loads((fourth / "state.json").read_text())["skipped_steps"] == 2


@pytest.mark.parametrize("parts", [1, 2])
def test_a_skipped_step_leaves_the_weights_as_they_were(
    run: Run, tmp_path: Path, poisoned: Callable[[set[int]], None], parts: int
) -> None:
    run(tmp_path / "short", steps=4, save_every=2, accumulate=parts)
    poisoned({2, 3})
    run(tmp_path / "long", steps=4, save_every=2, accumulate=parts)
    after_two = load_file(tmp_path / "short" / "checkpoints" / "step-00000002" / "learner.safetensors")
    after_four = load_file(tmp_path / "long" / "checkpoints" / "step-00000004" / "learner.safetensors")
    assert all(torch.equal(after_two[name], after_four[name]) for name in after_two)


def test_a_skipped_step_teaches_nobody(
    run: Run, tmp_path: Path, poisoned: Callable[[set[int]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the EMA teacher nor the centres learn from a step whose numbers are none."""
    taught: list[float] = []
    after_step = Learner.after_step

    def counted(self: Learner, notes: Any, progress: float) -> None:
        taught.append(progress)
        after_step(self, notes, progress)

    monkeypatch.setattr(Learner, "after_step", counted)
    poisoned({1, 2})
    run(tmp_path / "run", steps=4)
    assert taught == [0.0, 0.75]


def test_the_seed_reaches_the_order_of_the_data(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    loader = loop_module.loader

    def read(plan: Any, *rest: Any, **named: Any) -> Any:
        seen.append(plan.seed)
        return loader(plan, *rest, **named)

    monkeypatch.setattr(loop_module, "loader", read)
    run(tmp_path / "run", steps=1, seed=5)
    assert set(seen) == {5}


def test_a_run_stops_after_five_such_steps_in_a_row(
    run: Run, tmp_path: Path, poisoned: Callable[[set[int]], None]
) -> None:
    poisoned({0, 1, 2, 3, *range(5, 5 + PATIENCE)})
    with pytest.raises(
        Diverged, match=r"^loss.* not finite for 5 steps in a row at step 9: lower --lr, or --resume"
    ) as stop:
        run(tmp_path / "run", steps=20)
    assert "\n" not in str(stop.value)
    rows = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows if row["loss"] is not None] == [4]
    assert rows[-1]["step"] == 9


def test_a_learning_rate_far_too_large_ends_as_a_sentence(run: Run, tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="not finite for 5 steps in a row"):
        run(tmp_path / "run", lr=1e30, steps=20)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_only_finite_numbers_are_numbers(value: float) -> None:
    assert finite(value) is None
    assert finite(0.5) == 0.5


def test_a_model_is_asked_what_it_can_answer_and_labels_have_no_comma() -> None:
    captions = (Caption("a red square, alone"),)
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    one = Example(image, captions, (Region((0.0, 0.0, 4.0, 4.0), {"en": "the red one"}),))
    model: Any = SimpleNamespace(text=object())
    assert questions([one, one], model, ()) == ["--classify", "a red square alone,a red square alone"]
    assert questions([one], model, ("cap",)) == ["--caption"]
    assert questions([one], model, ("cap", "aref")) == ["--caption", "--locate", "the red one"]
