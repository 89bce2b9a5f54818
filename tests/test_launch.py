"""Ranks that fail end all, with one sentence; torchrun starts them again and they go on by themselves."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import RECIPE

from opensiglip.apps.train import recipes
from opensiglip.training.log import read_lines

KILLER = """
import os, signal
from pathlib import Path
from opensiglip.training import loop
from opensiglip.errors import UserError

plain = loop.Loop.train_step

def step(self, *given):
    if self.step == 4 and os.environ.get("RANK") == "1" and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        if os.environ["FAULT"] == "sentence":
            raise UserError("the data of rank 1 is gone; mount it.")
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(self, *given)

if os.environ.get("FAULT"):
    loop.Loop.train_step = step
"""


@pytest.fixture
def words(folder: str, tmp_path: Path) -> list[str]:
    """A run of six steps whose recipe's file can kill rank 1 in the fifth."""
    recipe = tmp_path / "faulty.py"
    recipe.write_text(RECIPE + KILLER)
    settings = "--steps 6 --save-every 2 --batch-size 8 --workers 0 --held-out 0 --precision fp32 --vocabulary 300"
    settings += " --no-memory-check"
    return ["train", f"{recipe}:small", "--data", folder, *settings.split()]


def start(arguments: list[str], fault: str) -> tuple[int, str, str]:
    """Exit code, what was said to stdout and to stderr."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "FAULT": fault}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("kill", "opensiglip: rank 1 of 2 was killed by SIGKILL, as the system does where memory runs out; the others"),
        ("sentence", "opensiglip (rank 1): the data of rank 1 is gone; mount it.\n"),
    ],
)
def test_a_rank_that_fails_ends_all_with_one_sentence(
    words: list[str], tmp_path: Path, fault: str, sentence: str
) -> None:
    code, _, said = start(["-m", "opensiglip", *words, "--ranks", "2", "--out", str(tmp_path / "run")], fault)
    assert code == 2 and said.startswith(sentence) and said.count("\n") == 1, said
    last = read_lines(tmp_path / "run" / "metrics.jsonl")[-1]["step"]
    assert last == 3


def test_ranks_that_torchrun_starts_again_go_on_from_the_last_checkpoint(words: list[str], tmp_path: Path) -> None:
    torchrun = "-m torch.distributed.run --standalone --nproc_per_node 2 --max-restarts 1 -m opensiglip"
    code, said, wrong = start([*torchrun.split(), *words, "--out", str(tmp_path / "run")], "kill")
    assert code == 0, wrong
    assert re.findall(r"^steps +(\d -> \d)", said, re.MULTILINE) == ["0 -> 6", "4 -> 6"]
    assert [row["step"] for row in read_lines(tmp_path / "run" / "metrics.jsonl")] == list(range(6))


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
