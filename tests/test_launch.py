"""Ranks that fail end all, with one sentence; torchrun starts them again and they go on by themselves."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import RECIPE
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.launcher.api import LaunchConfig

from opensiglip.apps import ranks
from opensiglip.apps.cli import main
from opensiglip.apps.said import say
from opensiglip.apps.train import recipes
from opensiglip.training.log import read_lines

KILLER = """
import os, signal, time
from pathlib import Path
from opensiglip.training import loop
from opensiglip.errors import UserError

plain = loop.Loop.train_step

def step(self, *given):
    if self.step == 4 and os.environ.get("RANK") == "0" and os.environ["FAULT"] == "kill a busy rank's neighbour":
        time.sleep(3)  # the launcher asks it to end before it sees that the other is gone
    if self.step == 4 and os.environ.get("RANK") == "1" and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        Path(__file__).with_name("fault").write_text(str(time.time()))
        if os.environ["FAULT"] == "sentence":
            raise UserError("the data of rank 1 is gone; mount it.")
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(self, *given)

if os.environ.get("FAULT"):
    loop.Loop.train_step = step
"""


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A run of six steps whose recipe's file can kill rank 1 in the fifth."""
    recipe = tmp_path / "faulty.py"
    recipe.write_text(RECIPE + KILLER)
    settings = "--steps 6 --save-every 2 --batch-size 8 --workers 0 --held-out 0 --precision fp32 --vocabulary 300"
    settings += " --no-memory-check"
    return ["train", f"{recipe}:small", *settings.split()]


def start(arguments: list[str], fault: str) -> tuple[int, str, str]:
    """Exit code, what was said to stdout and to stderr."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "FAULT": fault}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


KILLED = "opensiglip: rank 1 of 2 was killed by SIGKILL, as the system does where memory runs out; the others"


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("kill", KILLED),
        ("kill a busy rank's neighbour", KILLED),
        ("sentence", "opensiglip (rank 1): the data of rank 1 is gone; mount it.\n"),
    ],
)
def test_a_rank_that_fails_ends_all_within_half_a_minute_with_one_sentence(
    words: list[str], folder: str, tmp_path: Path, fault: str, sentence: str
) -> None:
    code, _, said = start(
        ["-m", "opensiglip", *words, "--data", folder, "--ranks", "2", "--out", str(tmp_path / "run")], fault
    )
    seconds = time.time() - float((tmp_path / "fault").read_text())
    assert code == 2 and said.startswith(sentence) and said.count("\n") == 1, said
    assert seconds < 30
    last = read_lines(tmp_path / "run" / "metrics.jsonl")[-1]["step"]
    assert last == 3


@pytest.mark.parametrize(
    ("said", "code", "words"),
    [
        ([(0, "stopped by SIGINT.", 75), (1, "stopped by SIGINT.", 75)], 75, "opensiglip: stopped by SIGINT.\n"),
        (
            [(1, "the disk is full.", 2), (0, "stopped.", 75)],
            2,
            "opensiglip (rank 1): the disk is full.\nopensiglip: s",
        ),
        ([(1, "stopped by SIGINT.", 75)], 75, "opensiglip: stopped by SIGINT.\n"),
        ([], 75, "opensiglip: stopped by SIGINT before a step; start it again, with --resume if it has saved.\n"),
    ],
)
def test_ranks_and_launcher_say_once_why_a_signal_ended_them(
    said: list[tuple[int, str, int]],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def torchrun(config: LaunchConfig, *command: str) -> Callable[..., None]:
        def run(*arguments: str) -> None:
            for rank, sentence, ended in said:
                place = Path(config.logs_specs.root_log_dir) / "1" / "attempt_0" / str(rank)
                place.mkdir(parents=True)
                with pytest.MonkeyPatch.context() as patch:
                    patch.setenv("RANK", str(rank))
                    patch.setenv("TORCHELASTIC_ERROR_FILE", str(place / "error.json"))
                    say(sentence, ended)
            raise SignalException("by the test", signal.SIGINT)

        return run

    monkeypatch.setattr(ranks, "elastic_launch", torchrun)
    with pytest.raises(SystemExit) as ended:
        sys.exit(main(["train", "siglip", "--data", "scenes", "--ranks", "2", "--out", str(tmp_path / "run")]))
    assert ended.value.code == code
    logging.disable(logging.NOTSET)
    assert capsys.readouterr().err.startswith(words)


def test_ranks_that_torchrun_starts_again_end_as_one_process_does(
    words: list[str], folder: str, tmp_path: Path
) -> None:
    """They go on from the last checkpoint; on pictures of which two are broken, so both have something to count."""
    data = shutil.copytree(folder, tmp_path / "data")
    for name in ("0.png", "11.png"):
        (data / name).write_bytes(b"no image")
    words = [*words, "--data", str(data), "--accumulate", "2"]
    torchrun = "-m torch.distributed.run --standalone --nproc_per_node 2 --max-restarts 1 -m opensiglip"
    code, said, wrong = start([*torchrun.split(), *words, "--out", str(tmp_path / "two")], "kill")
    assert code == 0, wrong
    assert re.findall(r"^steps +(\d -> \d)", said, re.MULTILINE) == ["0 -> 6", "4 -> 6"]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    one_rank, two_ranks = (read_lines(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [row["step"] for row in two_ranks] == list(range(6))
    for one, two in zip(one_rank, two_ranks, strict=True):
        late = (
            ("loss/local_to_global", "loss/masked_patches", "local_to_global/centre_norm") if one["step"] == 5 else ()
        )
        for key in ("loss", "loss/sigmoid", "loss/caption", "grad_norm", *late):
            assert two[key] == pytest.approx(one[key], rel=1e-5 if one["step"] == 0 else 1e-3)
    assert (tmp_path / "two" / "model" / "model.safetensors").is_file()
    states, summaries = (
        [json.loads((tmp_path / name / file).read_text()) for name in ("one", "two")]
        for file in ("checkpoints/step-00000006/state.json", "summary.json")
    )
    assert states[0] == states[1] and states[0]["images_seen"] == states[0]["read"] == 48
    assert states[0]["skipped_examples"] == {"image can't be decoded": 4}
    for key in ("skipped_examples", "images_seen", "parameters"):
        assert summaries[0][key] == summaries[1][key]


PAGE = (Path(__file__).parents[1] / "docs" / "how-to" / "launch.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(bash|yaml)?\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def scripts() -> list[str]:
    """The shell scripts of the page, those inside its YAML too."""
    found = []
    for kind, text in BLOCKS:
        if kind != "yaml":
            found.append(text)
        elif "run" in (read := yaml.safe_load(text)):
            found.append(read["run"])
        else:
            found += read["spec"]["template"]["spec"]["containers"][0]["args"]
    return found


def test_the_pages_scripts_parse_and_give_flags_that_exist() -> None:
    assert [kind for kind, _ in BLOCKS] == ["", "", "bash", "yaml", "yaml"]
    signature, _ = recipes(["siglip2"])["siglip2"].flags([])
    known = {f"--{name.replace('_', '-')}" for name in signature.parameters} | {"--resume"}
    for script in scripts():
        assert subprocess.run(["bash", "-n"], input=script, text=True, check=False, timeout=60).returncode == 0
        command = script.partition("train siglip2")[2].partition("\ncode=")[0]
        given = set(re.findall(r"(--[a-z-]+)", command))
        assert {"--data", "--out"} <= given <= known
