"""What helps at the prompt: help on one screen, the nearest name, completion, a run's own file."""

import json
import os
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from opensiglip.apps.cli import find, main
from opensiglip.apps.commands import COMMANDS
from opensiglip.apps.completion import SHELLS, candidates
from opensiglip.apps.train import OWN
from opensiglip.apps.train_help import COMMON, GROUPS
from opensiglip.recipes import RECIPES
from opensiglip.training.config import TrainConfig
from opensiglip.training.startup import few_held_out, small_data

SCREEN = 40  # lines


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def ask(*words: str) -> str:
        monkeypatch.setenv("COLUMNS", "100")
        assert main(list(words)) == 0
        return capsys.readouterr().out

    return ask


def test_every_flag_of_train_is_in_one_group() -> None:
    listed = [name for names in GROUPS.values() for name in names]
    assert sorted(listed) == sorted([*(field.name for field in fields(TrainConfig)), *(one.name for one in OWN)])


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_short_help_is_one_screen_with_the_common_flags_first(recipe: str, said: Any) -> None:
    lines = said("train", recipe, "--help").splitlines()
    assert len(lines) <= SCREEN and max(map(len, lines)) <= 100
    start = lines.index("most used:")
    shown = lines[start + 1 : lines.index("", start)]
    explained = [line.split()[0] for line in shown if line.startswith("  --")]
    assert explained == [f"--{name.replace('_', '-')}" for name in COMMON]
    assert all(any(line.startswith(f"{group}: ") for line in lines) for group in (*GROUPS, "recipe"))


def test_all_flags_are_explained_in_their_groups(said: Any) -> None:
    text = said("train", "siglip2", "--help-all")
    schedule = text.partition("schedule:")[2].partition("machine:")[0]
    assert "--lr X" in schedule and "peak learning rate" in schedule and "(default: 0.001)" in schedule
    assert "--no-memory-check" in text.partition("machine:")[2]
    assert "--prototypes N" in text.partition("recipe:")[2]


def test_help_all_of_other_commands_is_their_help(said: Any) -> None:
    assert said("data", "show", "--help-all") == said("data", "show", "--help")


def test_a_missing_flag_is_named_with_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "siglip", "--data", "scenes"]) == 2
    assert "--out is missing: the run's folder;" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["tr"], {"train"}),
        (["train", "siglip2"], {"siglip2", "siglip2_acid", "siglip2_naflex"}),
        (["train", "siglip", "--batch"], {"--batch-size"}),
        (["train", "siglip", "--no-mem"], {"--no-memory-check"}),
        (["train", "siglip", "--freeze", ""], {"vision", "text", "both", "none"}),
        (["plan", "siglip", "--gpu", "h"], {"h100", "h200"}),
        (["nothing", ""], set()),
    ],
)
def test_words_are_completed(words: list[str], wanted: set[str]) -> None:
    assert {name for name, _ in candidates(words, find)} == wanted


def test_the_scripts_ask_what_may_follow(said: Any) -> None:
    assert (
        said("complete", "--", "train", "loc") == "locca\tLocCa: captions, referring boxes and grounded captions, "
        "half of the captions in parallel.    (arXiv:2403.19596)\n"
    )
    assert all("opensiglip complete -- " in said("completion", shell) for shell in SHELLS)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_is_of_its_shell(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    subprocess.run([shell, "-n"], input=SHELLS[shell], text=True, check=True, timeout=60)


# What each shell does at TAB after `opensiglip --tr`, with its own way to show what was found.
PRESSED = {
    "bash": 'COMP_WORDS=(opensiglip --tr); COMP_CWORD=1; _opensiglip; printf "%s\\n" "${COMPREPLY[@]}"',
    "zsh": "words=(opensiglip --tr); CURRENT=2; _opensiglip",
    "fish": 'complete -C "opensiglip --tr"',
}
STUBS = {"zsh": 'compdef() { :; }; _describe() { print -rl -- "${(@P)2}"; }; _files() { print files; }\n'}
FOUND = {
    "bash": "--train\n--try\n",
    "zsh": "--train:about\\: it\n--try\n",
    "fish": "--train\tabout: it\n--try\n",
}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_by_its_script(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "opensiglip").write_text('#!/bin/sh\necho "$@" > asked\nprintf -- "--train\\tabout: it\\n--try\\n"\n')
    (tmp_path / "opensiglip").chmod(0o755)
    (tmp_path / "script").write_text(f"{STUBS.get(shell, '')}{SHELLS[shell]}\n{PRESSED[shell]}\n")
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    done = subprocess.run(
        [shell, "script"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert sorted(done.stdout.splitlines()) == sorted(FOUND[shell].splitlines()), done.stderr
    assert (tmp_path / "asked").read_text() == "complete -- --tr\n"


def record(folder: Path, **changes: Any) -> Path:
    arguments = {"recipe": "siglip", "train": {"data": ["scenes"], "lr": 0.5}, "keywords": {"length": 16}} | changes
    (folder / "config.json").write_text(json.dumps(arguments))
    return folder / "config.json"


def test_a_file_of_arguments_is_what_holds_below_the_flags(tmp_path: Path) -> None:
    file = record(tmp_path)
    for given in (file, tmp_path):
        node, _ = find(["train", "siglip"])
        known = node.flags(["--config", str(given), "--steps", "32"])[0].parameters  # type: ignore[union-attr]
        assert (known["lr"].default, known["length"].default, known["data"].default) == (0.5, 16, ("scenes",))


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"recipe": "cap"}, "is of the recipe cap, not siglip"),
        ({"keywords": {"colour": 3}}, "train siglip has no 'colour' in this version"),
        ({"train": 3}, "can't be read"),
        ({"train": {"steps": "6"}}, "that run's --steps is 6, which it can't be; give --steps yourself."),
        ({"train": {"steps": True}}, "--steps is True"),
        ({"train": {"betas": [0.9]}}, "--betas is (0.9,)"),
        ({"train": {"data": [["scenes"]]}}, "--data is (['scenes'],)"),
        ({"train": {"freeze": "all"}}, "--freeze is all"),
        ({"keywords": {"size": None}}, "--size is None"),
        ({"train": {"steps": 10**400}}, "--steps 1000000000000000000000000000000000000000 is out of range"),
        ({"train": {"lr": float("inf")}}, "--lr inf is out of range"),
    ],
)
def test_a_file_of_arguments_that_does_not_fit_is_one_sentence(
    changes: dict[str, Any], part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "siglip", "--config", str(record(tmp_path, **changes)), "--out", "run"]) == 2
    assert part in capsys.readouterr().err


def test_little_data_is_said() -> None:
    assert small_data(1000, 100, ("cap", "aref"), regions=5) == []
    few, placeless = small_data(150, 100, ("cap", "aref", "gcap"), regions=0)
    assert few.startswith("150 images are 1.5 batches of 100") and placeless.startswith("no regions: aref and gcap")
    assert few_held_out(100) is None
    assert few_held_out(2) == "2 held-out examples: one of them is 0.500 of a rate"


def test_commands_that_print_scripts_are_quick() -> None:
    assert COMMANDS["completion"].light  # type: ignore[union-attr]
