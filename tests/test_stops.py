"""A run that is asked to stop, shares its folder, meets a full disk or loses a worker says so and loses nothing."""

import errno
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run
from safetensors.torch import load_file, save_file

from opensiglip.apps.cli import main
from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.checkpoints.run_folder import RunFolder
from opensiglip.data.loader import Steps
from opensiglip.errors import Stopped, UserError
from opensiglip.models.model import Model
from opensiglip.training import checkpoint, gradient, lock
from opensiglip.training import loop as loop_module
from opensiglip.training import stop as stop_module
from opensiglip.training.best import Best
from opensiglip.training.finish import skipped_advice
from opensiglip.training.health import Alarms
from opensiglip.training.held_out import HeldOut
from opensiglip.training.loop import Loop
from opensiglip.training.stop import Stop

LEARNER = "checkpoints/step-00000006/learner.safetensors"


@pytest.fixture(scope="module")
def straight(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("straight") / "run"
    run(out)
    return out


@pytest.fixture
def signals_in_step(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have this process sent signals while it computes one of its steps."""

    def at(step: int, *numbers: int) -> None:
        taken, accumulate = iter(range(10**6)), gradient.accumulate

        def asked(*arguments: Any) -> Any:
            if next(taken) == step:
                for number in numbers:
                    signal.raise_signal(number)
            return accumulate(*arguments)

        monkeypatch.setattr(gradient, "accumulate", asked)

    return at


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_ends_the_step_saves_it_and_says_where_and_the_run_goes_on_bit_for_bit(
    name: str, signals_in_step: Callable[..., None], run: Run, straight: Path, tmp_path: Path
) -> None:
    out, before = tmp_path / "run", signal.getsignal(signal.SIGTERM)
    signals_in_step(3, getattr(signal, name))
    with pytest.raises(Stopped) as stop:
        run(out)
    assert str(stop.value) == f"stopped by {name}; --resume continues from {out}/checkpoints/step-00000004."
    assert signal.getsignal(signal.SIGTERM) == before and not RunFolder(out).lock.exists()
    run(out, resume=True)
    assert (out / LEARNER).read_bytes() == (straight / LEARNER).read_bytes()


def test_the_second_signal_stops_at_once(signals_in_step: Callable[..., None], run: Run, tmp_path: Path) -> None:
    signals_in_step(4, signal.SIGTERM, signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match=r"continues from .*step-00000003\.$") as stop:
        run(tmp_path / "run")
    assert not isinstance(stop.value, Stopped)


def test_a_signal_while_the_last_step_is_saved_stops_before_the_export(
    run: Run, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, describe = tmp_path / "run", checkpoint.write_manifest

    def asked(part: Path, step: int) -> None:
        if step == 6:
            signal.raise_signal(signal.SIGTERM)
        describe(part, step)

    with (
        monkeypatch.context() as patch,
        pytest.raises(Stopped, match=r"SIGTERM; --resume continues from .*00000006\.$"),
    ):
        patch.setattr(checkpoint, "write_manifest", asked)
        run(out)
    assert not RunFolder(out).ended
    run(out, resume=True)
    assert RunFolder(out).ended and (out / LEARNER).read_bytes() == (straight / LEARNER).read_bytes()


def test_the_command_line_ends_with_75_and_outside_steps_at_once(
    recipe: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "opensiglip.training.run_data.open_source", lambda *_, **__: signal.raise_signal(signal.SIGUSR1)
    )
    words = ["train", recipe, "--data", folder, "--out", str(tmp_path / "run"), "--held-out", "0"]
    assert main(words) == 75
    assert "stopped by SIGUSR1 before the run began: start it again as it is." in capsys.readouterr().err


def test_what_a_launcher_passes_on_is_no_second_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    stop = Stop()
    with pytest.raises(KeyboardInterrupt), stop.waits():
        stop.received(signal.SIGTERM)
        stop.received(signal.SIGTERM)
        stop.since -= 2 * stop_module.ONE_REQUEST
        stop.received(signal.SIGTERM)


def test_a_launchers_signal_is_told_once_all_ranks_agree_and_one_process_at_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def told(rank: str, by: signal.Signals | None) -> tuple[str, str, bool]:
        """What is said as the signal comes and as the step has ended; was it SIGTERM?"""
        monkeypatch.setenv("RANK", rank)
        stop = Stop()
        stop.stepping = True
        if by is not None:
            stop.received(by)
        first = capfd.readouterr().err
        stop.agreed()
        return first, capfd.readouterr().err, stop.asked()

    rest = "; a second signal stops at once.\n"
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert told("0", signal.SIGTERM) == (f"SIGTERM: this step ends and is saved{rest}", "", True)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert told("0", signal.SIGTERM) == ("", f"SIGTERM: this step is saved{rest}", True)
    assert told("0", signal.SIGUSR1) == ("", f"SIGUSR1: this step is saved{rest}", False)
    assert told("0", None) == ("", f"another rank: this step is saved{rest}", False)
    assert told("1", signal.SIGTERM) == ("", "", True)


def test_a_rank_whose_launcher_is_gone_asks_to_stop_and_then_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(stop_module, "GRACE", 0.0)
    monkeypatch.setattr(os, "_exit", ended.append)
    stop = Stop()
    stop.watch(parent=-1)
    assert stop.by == "the end of its launcher" and ended == [75]


def test_a_checkpoint_is_also_due_by_time(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "SAVE_SECONDS", -1)
    run(tmp_path / "run", save_every=1000, steps=4, keep_last=9)
    assert [path.name[-1] for path in RunFolder(tmp_path / "run").complete()] == ["1", "2", "3", "4"]


# Alone in the folder


def test_a_second_run_in_the_folder_is_refused_with_who_has_it(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(out)
    with (
        lock.held(RunFolder(out)),
        pytest.raises(UserError, match=f"is trained in by process {os.getpid()} on .* since"),
    ):
        run(out, resume=True)
    run(out, resume=True)
    assert not RunFolder(out).lock.exists()


def test_whoever_comes_second_waits_for_its_turn_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, waiting = tmp_path / "lock", lock.lock_descriptor
    with ExitStack() as first:
        first.enter_context(lock.turn(file, "the first"))

        def locks(descriptor: int, *, blocking: bool = True) -> bool:
            if blocking:  # the second has found it taken
                assert capsys.readouterr().out == "the cache is written: this one waits\n"
                first.close()
            return waiting(descriptor, blocking=blocking)

        monkeypatch.setattr(lock, "lock_descriptor", locks)
        with lock.turn(file, "the cache is written"):
            assert not waiting(os.open(file, os.O_RDWR), blocking=False)
    with lock.turn(file, "nobody has it"):
        assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("host", "age", "refused"), [("here", 0, False), ("there", 0, True), ("there", 120, False)])
def test_the_lock_of_a_dead_process_is_recognised(
    host: str,
    age: int,
    refused: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "here")
    run = RunFolder(tmp_path)
    run.lock.write_text(json.dumps({"pid": 1234567, "host": host, "since": "2026-01-01 00:00:00"}))
    os.utime(run.lock, (time.time() - age,) * 2)
    if refused:
        with pytest.raises(
            UserError, match="by process 1234567 on there since 2026.*; if that machine is dead, wait 60"
        ):
            lock._taken(run)
        return
    with lock.held(run):
        assert json.loads(run.lock.read_text())["pid"] == os.getpid()
    assert f"process 1234567 on {host}, which trained here, is dead" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_data_worker_does_not_hold_the_lock(tmp_path: Path) -> None:
    run, (reader, writer), (began, begins) = RunFolder(tmp_path), os.pipe(), os.pipe()
    file = lock._taken(run)
    lock.HELD.add(file)
    worker = os.fork()
    if not worker:
        os.close(writer)
        os.write(begins, b"1")
        os.read(reader, 1)
        os._exit(0)
    try:
        os.read(began, 1)  # fork returns here before the worker has run
        lock.HELD.discard(file)
        os.close(file)  # as the kernel does where the process is killed
        os.close(lock._taken(run))
    finally:
        for end in (reader, writer, began, begins):
            os.close(end)
        os.waitpid(worker, 0)


# The disk


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_refuses_a_checkpoint_is_a_sentence_and_the_last_one_stays(
    number: int, run: Run, straight: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    calls = iter(range(100))

    def refuse(tensors: Any, path: Path) -> None:
        if next(calls) >= 3:  # two files of the first checkpoint, one of the stage
            path.write_bytes(b"half")
            raise OSError(number, os.strerror(number))
        save_file(tensors, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save_file", refuse)
        with pytest.raises(UserError, match=r"step-00000006 can't be written \(.*from .*step-00000003\.") as caught:
            run(out)
    assert "\n" not in str(caught.value) and os.strerror(number) in str(caught.value)
    assert ("MB are needed" in str(caught.value)) == (number != errno.EROFS)
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-00000003"]
    run(out, resume=True)
    assert (out / LEARNER).read_bytes() == (straight / LEARNER).read_bytes()


def test_a_run_whose_first_checkpoint_failed_starts_again_as_it_is(
    run: Run, straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for resume in (False, True):
        out = tmp_path / str(resume)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match="start the run again as it is"):
            patch.setattr(checkpoint, "save_file", refuse)
            run(out)
        run(out, resume=resume)
        assert (out / LEARNER).read_bytes() == (straight / LEARNER).read_bytes()
    assert "has no checkpoint: it starts again" in capsys.readouterr().out


def test_a_full_disk_that_a_library_tells_of_is_a_sentence_in_every_command(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """tokenizers and safetensors raise errors of their own, which only end in the system's number."""

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("No space left on device (os error 28)")

    monkeypatch.setattr(Pretrained, "save", refuse)
    assert main(["export", str(straight), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"opensiglip: {tmp_path}/out can't be written (No space left on device: ")
    assert said.endswith(" MB are free); make room, or name another --out.\n") and said.count("\n") == 1


# Workers


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("sentence", r"^what is wrong \(data worker 0\)\.$"),
        ("killed", r"^data worker \(process \d+\) was killed by the system \(.*\): .*memory.*; give fewer --workers"),
    ],
)
def test_a_data_worker_that_fails_is_one_sentence_with_its_origin(
    end: str, said: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        if end == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise UserError("what is wrong.")

    monkeypatch.setattr(Steps, "__getitem__", fail)
    with pytest.raises(UserError, match=said) as caught:
        run(tmp_path / "run", workers=1)
    assert "\n" not in str(caught.value)


# Steps skipped, weights that are none, the best


def test_more_than_a_tenth_of_skipped_steps_says_what_to_do() -> None:
    assert skipped_advice(10, 100) is None
    assert "11 of 100 steps were skipped" in (skipped_advice(11, 100) or "")


def test_skipped_steps_are_said_at_the_end(
    recipe: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    accumulate, calls = gradient.accumulate, iter(range(9))

    def poison(step: Any, learner: Any, parts: Any, live: Any, *rest: Any) -> Any:
        return accumulate(step, learner, parts, live * (float("nan") if next(calls) == 1 else 1), *rest)

    monkeypatch.setattr(gradient, "accumulate", poison)
    words = ["train", recipe, "--data", folder, "--out", str(tmp_path / "run"), "--steps", "4", "--batch-size", "8"]
    words += ["--workers", "0", "--held-out", "0", "--vocabulary", "300", "--precision", "fp32", "--no-memory-check"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "skipped steps" in said and "1 of 4" in said and "train again with a lower --lr" in said
    assert "1 of 4" in json.loads((tmp_path / "run" / "summary.json").read_text())["advice"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_when_a_model_is_opened(
    value: float, run: Run, straight: Path, tmp_path: Path
) -> None:
    Pretrained.open(straight).save(tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["logit_bias"].fill_(value)
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    for opened in (Pretrained.open, Model.from_pretrained):
        with pytest.raises(UserError, match=r"model has weights that are not finite, in logit_bias; take"):
            opened(tmp_path / "model")


@pytest.mark.parametrize("file", ["learner", "optimizer"])
def test_a_run_goes_on_from_no_weights_that_are_not_finite(file: str, run: Run, straight: Path, tmp_path: Path) -> None:
    shutil.copytree(straight, tmp_path / "run")
    for saved in RunFolder(tmp_path / "run").complete():
        tensors = load_file(saved / f"{file}.safetensors")
        name = next(name for name in tensors if name.startswith("model.logit_bias"))
        tensors[name].fill_(float("nan"))
        save_file(tensors, saved / f"{file}.safetensors")
        (saved / "manifest.json").unlink()
    words = (
        f"{saved} has weights that are not finite, in {name}; delete that folder, and --resume continues from the one"
    )
    with pytest.raises(UserError, match=words):
        run(tmp_path / "run", resume=True)
    first = saved.with_name("step-00000003")
    with pytest.raises(
        UserError, match=f"{first} has weights that are not finite, in {name}; continue from an earlier"
    ):
        run(tmp_path / "more", continue_from=str(first))


def test_the_best_checkpoint_stays_and_training_ends_where_none_better_comes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = iter([0.1, 0.5, 0.3, 0.4, 0.2, 0.9])
    monkeypatch.setattr(HeldOut, "row", lambda *_: {"eval/retrieval/r1": next(figures)})
    flags = {"eval_every": 1, "held_out": 4, "keep_best": "eval/retrieval/r1", "patience": 3, "keep_last": 1}
    out, stopped = tmp_path / "run", iter([False] * 3 + [True])
    plain = Loop._evaluate_and_save

    def stop(self: Loop, *rest: Any) -> None:
        plain(self, *rest)
        if next(stopped, False):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Loop, "_evaluate_and_save", stop)
        run(out, steps=12, save_every=1, **flags)
    summary = run(out, steps=12, save_every=1, resume=True, **flags)
    assert summary["steps"] == 5 and summary["best"] == {
        "metric": flags["keep_best"],
        "value": 0.5,
        "step": 2,
        "waited": 3,
    }
    assert [path.name[-1] for path in RunFolder(out).complete()] == ["2", "5"]
    assert run(out, steps=12, save_every=1, resume=True, **flags)["steps"] == 5, "it had ended"


def test_no_step_whose_checkpoint_an_alarm_holds_back_is_the_best(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = iter([0.1, 0.9, 0.3, 0.2])
    monkeypatch.setattr(HeldOut, "row", lambda *_: {"eval/retrieval/r1": next(figures)})
    monkeypatch.setattr(Alarms, "check", lambda self, step, *_: step != 1)  # the second step's
    flags = {"eval_every": 1, "held_out": 4, "keep_best": "eval/retrieval/r1", "keep_last": 1}
    summary = run(tmp_path / "run", steps=4, save_every=1, **flags)
    assert (summary["best"]["value"], summary["best"]["step"]) == (0.3, 3)
    assert [path.name[-1] for path in RunFolder(tmp_path / "run").complete()] == ["3", "4"]


def test_a_metric_that_is_not_measured_is_named() -> None:
    with pytest.raises(UserError, match="--keep-best eval/x is not measured here; there are eval/y"):
        Best("eval/x").judge(1, {"eval/y": 1.0})
    best = Best("eval/x", patience=1)
    assert best.judge(1, {"eval/x": 0.0}) and not best.judge(2, {"eval/x": float("nan")}) and best.exhausted
    assert torch.tensor(best.value).isfinite()
