"""A run that was cut short goes on as if it never had been, and never on top of another."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run
from safetensors.torch import load_file

from opensiglip.checkpoints.run_folder import RunFolder
from opensiglip.errors import UserError
from opensiglip.training import gradient
from opensiglip.training.log import read_lines

STEPS, SAVE_EVERY = 6, 3


@pytest.fixture(scope="module")
def straight(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run: not to be written to."""
    out = tmp_path_factory.mktemp("straight") / "run"
    run(out)
    return out


@pytest.fixture(scope="module")
def cut(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped in its fifth step: one checkpoint, of step 3, and a row after it. Not to be written to."""
    out = tmp_path_factory.mktemp("cut") / "run"
    cut_short(4, lambda: run(out))
    return out


def cut_short(after: int, start: Callable[[], Any]) -> str:
    """Stop a run in the step that follows its first `after`; what it says."""
    with pytest.MonkeyPatch.context() as patch:
        calls, accumulate = iter([False] * after + [True]), gradient.accumulate

        def stop(*arguments: Any) -> Any:
            if next(calls):
                raise KeyboardInterrupt
            return accumulate(*arguments)

        patch.setattr(gradient, "accumulate", stop)
        with pytest.raises(KeyboardInterrupt) as stop:
            start()
    return str(stop.value)


@pytest.fixture
def copy(cut: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(cut, tmp_path / "run"))


def losses(out: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in row.items() if key != "images_per_second"}
        for row in read_lines(out / "metrics.jsonl")
    ]


def assert_same_end(out: Path, other: Path, steps: int = STEPS) -> None:
    last = f"checkpoints/step-{steps:08d}"
    for file in (f"{last}/learner.safetensors", f"{last}/optimizer.safetensors", "model/model.safetensors"):
        ours, theirs = load_file(out / file), load_file(other / file)
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert (out / last / "state.json").read_text() == (other / last / "state.json").read_text()
    assert losses(out) == losses(other)


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_a_run_cut_short_and_resumed_is_the_straight_run_bit_for_bit(straight: Path, copy: Path, run: Run) -> None:
    assert [row["step"] for row in losses(copy)] == [0, 1, 2, 3]
    run(copy, resume=True)
    assert len(losses(straight)) == STEPS
    assert_same_end(copy, straight)
    optimizer = load_file(straight / f"checkpoints/step-{STEPS:08d}/optimizer.safetensors")
    assert {name.rpartition("/")[2] for name in optimizer} == {"step", "exp_avg", "exp_avg_sq"}


def test_resuming_just_after_a_checkpoint_gives_the_straight_run(straight: Path, copy: Path, run: Run) -> None:
    rows = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_text("".join(rows[:SAVE_EVERY]) + '{"step": 3, "lo')  # and killed while writing
    run(copy, resume=True)
    assert_same_end(copy, straight)


def test_a_run_cut_short_around_the_switch_to_the_last_stage_goes_on_bit_for_bit(run: Run, tmp_path: Path) -> None:
    steps, switch = 10, 8
    run(tmp_path / "straight", steps=steps)
    for taken in (switch - 1, switch, switch + 1):
        out = tmp_path / str(taken)
        cut_short(taken, lambda out=out: run(out, steps=steps, save_every=1))
        newest = out / "checkpoints" / f"step-{taken:08d}"
        assert RunFolder(out).newest() == newest
        if taken == switch:
            fresh = load_file(newest / "learner.safetensors")
        run(out, steps=steps, save_every=1, resume=True)
        assert_same_end(out, tmp_path / "straight", steps)
        stage = load_file(out / "stages" / f"step-{switch:08d}.safetensors")
        before = load_file(tmp_path / "straight" / "stages" / f"step-{switch:08d}.safetensors")
        assert all(torch.equal(stage[name], before[name]) for name in before)
    end = load_file(tmp_path / "straight" / "checkpoints" / f"step-{steps:08d}" / "learner.safetensors")
    assert [
        name for name in end if torch.equal(end[name], fresh[name])
    ] == []  # model, heads, teacher, centres: all moved
    assert [name for name in before if not torch.equal(before[name], fresh[f"model.{name}"])] == []


def test_resuming_a_finished_run_changes_nothing_and_ends_cleanly(straight: Path, tmp_path: Path, run: Run) -> None:
    out = Path(shutil.copytree(straight, tmp_path / "run"))
    summary = run(out, resume=True)
    assert summary["steps"] == STEPS
    assert summary["losses"] == json.loads((straight / "summary.json").read_text())["losses"]
    assert_same_end(out, straight)


def test_a_half_written_checkpoint_is_passed_over(straight: Path, copy: Path, run: Run) -> None:
    half = copy / "checkpoints" / "step-00000005.part"
    half.mkdir()
    (half / "learner.safetensors").write_bytes(b"half")
    (copy / "checkpoints" / "step-00000004").mkdir()  # without its state.json it is none either
    assert RunFolder(copy).newest() == copy / "checkpoints" / "step-00000003"
    run(copy, resume=True)
    assert_same_end(copy, straight)


@pytest.mark.parametrize("file", ["learner.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("keep", [0, 0.5])
def test_a_corrupt_checkpoint_is_named_in_one_sentence(copy: Path, run: Run, file: str, keep: float) -> None:
    path = copy / "checkpoints" / "step-00000003" / file
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(UserError, match=r"step-00000003 is damaged \(.*\) and there is no other; train") as caught:
        run(copy, resume=True)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_network_is_named_in_one_sentence(copy: Path, run: Run) -> None:
    with pytest.raises(UserError, match="step-00000003 has .* as .*, here it is .* of another size") as caught:
        run(copy, resume=True, changed=True, resolution=64)
    assert "\n" not in str(caught.value)


def test_resuming_with_other_arguments_is_refused_and_names_them(copy: Path, run: Run) -> None:
    before = contents(copy)
    with pytest.raises(UserError, match=r"\(parallel: 0.5 before, 0.25 now; lr: 0.001 before, 0.01 now\)"):
        run(copy, resume=True, lr=0.01, parallel=0.25)
    assert contents(copy) == before


def test_other_arguments_are_taken_once_confirmed(
    copy: Path, run: Run, straight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(copy, resume=True, changed=True, lr=0.01)
    assert "changed: lr: 0.001 before, 0.01 now" in capsys.readouterr().out
    assert json.loads((copy / "config.json").read_text())["train"]["lr"] == 0.01
    assert losses(copy)[:3] == losses(straight)[:3]
    assert losses(copy)[3]["lr"] == pytest.approx(10 * losses(straight)[3]["lr"])


def test_what_does_not_change_the_result_may_differ(copy: Path, run: Run, straight: Path) -> None:
    run(copy, resume=True, save_every=1)
    assert_same_end(copy, straight)
    kept = sorted(path.name for path in (copy / "checkpoints").iterdir())
    assert kept == ["step-00000005", "step-00000006"]  # only the newest two stay


def test_an_existing_run_is_refused_and_nothing_of_it_is_lost(copy: Path, run: Run) -> None:
    before = contents(copy)
    with pytest.raises(UserError, match="already holds a run; continue it with --resume"):
        run(copy)
    assert contents(copy) == before


def test_there_is_nothing_to_resume_in_an_empty_folder(tmp_path: Path, run: Run) -> None:
    with pytest.raises(UserError, match="holds no run to --resume"):
        run(tmp_path, resume=True)
    assert contents(tmp_path) == {}


def test_a_run_that_was_stopped_before_its_first_checkpoint_begins_again(
    copy: Path, run: Run, straight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copy / "checkpoints")
    run(copy, resume=True)
    assert "has no checkpoint yet: it starts again" in capsys.readouterr().out
    assert_same_end(copy, straight)


@pytest.mark.parametrize(
    ("taken", "words"),
    [
        (1, "before the first checkpoint: nothing is saved, and --resume begins anew"),
        (4, "continues from {out}/checkpoints/step"),
    ],
)
def test_a_stop_says_what_is_saved(taken: int, words: str, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    said = cut_short(taken, lambda: run(out))
    assert words.format(out=out) in said and "\n" not in said


def test_other_examples_in_the_same_folder_are_refused_and_named(
    copy: Path, run: Run, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(folder, tmp_path / "data")
    config = json.loads((copy / "config.json").read_text())
    config["train"]["data"] = [str(data)]
    config["fingerprints"] = {str(data): config["fingerprints"][folder]}
    (copy / "config.json").write_text(json.dumps(config))
    rows = (data / "metadata.jsonl").read_text()
    (data / "metadata.jsonl").write_text(rows.replace("a red square on green", "a pink square on green"))
    with pytest.raises(UserError, match=f"data: {data} has other examples than before.*; confirm with --changed"):
        run(copy, data=[str(data)], resume=True)
    run(copy, data=[str(data)], resume=True, changed=True)
    assert f"changed: data: {data} has other examples" in capsys.readouterr().out


def test_a_run_of_a_version_without_fingerprints_and_of_fewer_flags_resumes(
    copy: Path, run: Run, straight: Path
) -> None:
    config = json.loads((copy / "config.json").read_text())
    del config["fingerprints"], config["train"]["eval_every"], config["keywords"]["momentum"]
    (copy / "config.json").write_text(json.dumps(config))
    run(copy, resume=True)
    assert_same_end(copy, straight)


def test_images_seen_are_counted_not_computed(copy: Path, run: Run) -> None:
    """Three steps of eight images, then three of four."""
    assert run(copy, resume=True, changed=True, batch_size=4)["images_seen"] == 3 * 8 + 3 * 4


def test_checkpoints_hold_tensors_and_json_only(straight: Path) -> None:
    files = {path.name for path in (straight / "checkpoints").rglob("*") if path.is_file()}
    tensors, facts = {"learner.safetensors", "optimizer.safetensors"}, {"state.json", "manifest.json"}
    assert files == tensors | facts | {"opensiglip.json", "tokenizer.json", "tokenizer_config.json"}
