"""The command line: bad input is one sentence and exit code 2, before anything is written."""

import inspect
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import opensiglip
from opensiglip import __version__
from opensiglip.apps import signature
from opensiglip.apps.cli import main
from opensiglip.apps.commands import COMMANDS, Command
from opensiglip.apps.said import say
from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.errors import UserError
from opensiglip.models.model import Model
from opensiglip.recipes import RECIPES, find_recipe

OURS = {"PYTHONPATH": str(Path(opensiglip.__file__).parents[1])}
SCENES = "scenes:drawings=20,objects=3,count=64"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def complaint(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command fails with."""
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and said.err.startswith("opensiglip: "), said.err
    assert said.out == ""
    return said.err.removeprefix("opensiglip: ").rstrip("\n")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("fly", "no such command: 'fly'; there are train, plan,"),
        ("trian", "no such command: 'trian', the nearest is train;"),
        ("--data scenes train siglip2", "name a command first: train, plan,"),
        ("data", "name a data command first: show, stats,"),
        ("data sow", "no such data command: 'sow', the nearest is show; there are show,"),
        ("data show", "SOURCE is missing: `scenes`, `scenes:key=value,...` or another source, as for train's --data; "),
        ("data show scenes more", "unexpected word: 'more'"),
        (
            "train siglip --out a --data scenes scenes",
            "unexpected word: 'scenes'; give --data again before each value;",
        ),
        ("train siglip --data scenes --out a b", "unexpected word: 'b'; `opensiglip train siglip --help`"),
        ("data show nowhere", "no such source: nowhere"),
        (
            "search index --json=yes fox",
            "--json takes no value, and 'yes' is given: --json turns it on, --no-json turns it",
        ),
        ("bench sigmoid --out cli", "--out cli can't be written to (Not a directory); name another folder."),
        ("study objectives --out cli", "--out cli can't be written to (Not a directory); name another folder."),
        ("data show scenes:objects=0", "objects=0 is not a whole number from 1 to 9"),
        ("data show scenes --fast", "no such flag: --fast; `opensiglip data show --help` lists the flags."),
        ("eval run --data scenes --taks all", "no such flag: --taks, the nearest is --tasks;"),
        ("train", "name a recipe first: clip, lit,"),
        ("train --data scenes", "or FILE.py:FUNCTION."),
        ("train nothing --data scenes --out run", "no such recipe: 'nothing'; there are clip, lit,"),
        ("train siglip3 --data scenes --out run", "no such recipe: 'siglip3', the nearest is siglip"),
        ("train none.py:small --data scenes --out run", "recipe file none.py does not exist"),
    ],
)
def test_a_command_that_is_none_is_one_sentence(
    words: str, part: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "cli").write_text("")
    assert part.lower() in complaint(words.split(), capsys).lower()
    assert [path.name for path in place.iterdir()] == ["cli"]


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ("--fast", "no such flag: --fast"),
        ("--batchsize 8", "no such flag: --batchsize, the nearest is --batch-size;"),
        ("--parallell=1", "no such flag: --parallell, the nearest is --parallel;"),
        ("--steps many", "--steps many can't be read; give a whole number;"),
        ("--lr=fast", "--lr fast can't be read; give a number;"),
        ("--keep 0.5 much", "--keep 0.5 much can't be read; give a number, or several;"),
        ("--lr", "--lr needs a number;"),
        ("--freeze all", "--freeze 'all' is unknown; give vision, text, both or none;"),
        ("--size huge", "--size 'huge' is unknown; sizes are tiny"),
        ("--resolution 60", "--resolution 60 is not a multiple of the patch size 8; try 56"),
        ("--resolution 0", "--resolution 0 is out of range"),
        ("--length 4", "--length 4 is out of range; give a number of at least 8"),
        ("--parallel 1.5", "--parallel 1.5 is out of range; give a number of at least 0 and at most 1"),
        ("--crop-area 0", "--crop-area 0.0 is out of range; give a number of more than 0 and at most 1"),
        ("--boxes x1x2", "--boxes 'x1x2' is not a box format"),
        ("--logit-bias much", "--logit-bias 'much' is neither a number nor auto"),
        ("--logit-bias nan", "--logit-bias 'nan' is neither a number nor auto"),
        ("--steps 0", "--steps 0 is out of range; give a number of at least 1"),
        ("--steps -3", "--steps -3 is out of range"),
        ("--epochs 0", "--epochs 0.0 is out of range; give a number of more than 0"),
        ("--steps 3 --epochs 1", "--steps and --epochs both set the length"),
        ("--batch-size 0", "--batch-size 0 is out of range"),
        ("--batch-size -8", "--batch-size -8 is out of range"),
        ("--accumulate 0", "--accumulate 0 is out of range"),
        ("--batch-size 10 --accumulate 4", "by 1 ranks x --accumulate 4; give --batch-size 8 or 12."),
        (
            "--batch-size 3 --accumulate 4",
            "--batch-size 3 is not divisible by 1 ranks x --accumulate 4; give --batch-size 4.",
        ),
        (
            "--checkpointing=yes",
            "--checkpointing takes no value, and 'yes' is given: --checkpointing turns it on, --no-",
        ),
        ("--no-memory_check=1", "--no-memory-check takes no value, and '1' is given: --memory-check turns it on"),
        ("--quiet=yes", "--quiet takes no value, and 'yes' is given: --quiet turns it on."),
        ("--lr 0", "--lr 0.0 is out of range; give a number of more than 0"),
        ("--lr -1e-3", "--lr -0.001 is out of range"),
        ("--lr nan", "--lr nan is out of range"),
        ("--lr inf", "--lr inf is out of range"),
        ("--warmup -1", "--warmup -1 is out of range"),
        ("--weight-decay -0.1", "--weight-decay -0.1 is out of range"),
        ("--clip-norm 0", "--clip-norm 0.0 is out of range"),
        ("--held-out -1", "--held-out -1 is out of range"),
        ("--workers -1", "--workers -1 is out of range"),
        ("--seed -1", "--seed -1 is out of range"),
        ("--seed 4294967296", "--seed 4294967296 is out of range"),
        ("--save-every 0", "--save-every 0 is out of range"),
        ("--log-every 0", "--log-every 0 is out of range"),
        ("--vocabulary 100", "--vocabulary 100 is out of range; give a number of at least 258"),
        ("--precision fp8", "--precision 'fp8' is unknown; give auto, fp32, bf16 or fp16"),
        ("--trackers paper", "--trackers paper is unknown; there are aim, tensorboard, wandb,"),
        ("--trackers wandb", "--trackers wandb needs its library; `pip install wandb`."),
        ("--ranks 2 --dry-run", "--dry-run runs in one process; leave --ranks out"),
        ("--languages tlh", "scenes have no language 'tlh'"),
        ("--tokenizer no/such/one.json", "--tokenizer 'no/such/one.json' can't be read"),
        ("--tokenizer junk.json", "--tokenizer 'junk.json' can't be read"),
        ("--data nowhere", "no such source: nowhere"),
        ("--data empty", "empty has no metadata.jsonl"),
        ("--resume", "--out run holds no run to --resume"),
        ("--out file", "--out file can't be made"),
    ],
)
def test_a_bad_flag_is_one_sentence_and_writes_nothing(
    flags: str, part: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "empty").mkdir()
    (place / "file").write_text("mine")
    (place / "junk.json").write_text("{}")
    said = complaint(["train", "siglip2", *f"--size tiny --data {SCENES} --out run {flags}".split()], capsys)
    assert part in said
    assert {path.name for path in place.rglob("*")} == {"empty", "file", "junk.json"}


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("--out run", "--data is missing"),
        (f"--data {SCENES}", "--out is missing"),
        ("", "--out is missing"),
    ],
)
def test_what_a_run_needs_is_asked_for(words: str, part: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert part in complaint(["train", "siglip2", *words.split()], capsys)
    assert list(place.iterdir()) == []


def test_an_existing_run_is_not_overwritten(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = place / "run" / "checkpoints" / "step-00000001"
    saved.mkdir(parents=True)
    (saved / "state.json").write_text("{}")
    (place / "run" / "config.json").write_text("{}")
    words = ["train", "siglip2", "--size", "tiny", "--data", SCENES, "--out", "run"]
    assert "--out run already holds a run; continue it with --resume" in complaint(words, capsys)
    assert (place / "run" / "config.json").read_text() == "{}"


def test_a_folder_that_cannot_be_written_to_is_one_sentence(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of somebody else's: it is there, and nothing can be written in it."""

    def refused(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    (place / "theirs").mkdir()
    monkeypatch.setattr(Path, "touch", refused)
    words = [
        "train",
        "siglip",
        "--size",
        "tiny",
        "--data",
        "scenes:drawings=9,objects=1",
        "--out",
        "theirs",
        "--batch-size",
        "4",
        "--steps",
        "1",
    ]
    said = "--out theirs can't be written to (Permission denied); name another folder."
    assert complaint([*words, "--held-out", "0", "--workers", "0"], capsys) == said
    assert list((place / "theirs").iterdir()) == []


def test_an_export_that_cannot_be_written_is_one_sentence(
    place: Path, small: Any, pipeline: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Model.new(small("siglip").architecture, len(pipeline))
    Pretrained.of(model, pipeline, name="tiny").save(place / "tiny")
    (place / "file").write_text("mine")
    assert "--out file/out can't be written (" in complaint(["export", "tiny", "--out", "file/out"], capsys)


@pytest.mark.parametrize(
    "words",
    [
        "eval none --data photos --out file/out",
        "compare none none --data photos --out file/out",
        "data show FOLDER --out file/out.png",
        "data stats FOLDER --workers 0 --out file/out",
        "data convert FOLDER --workers 0 --out file/out",
        "tokenizer train FOLDER --size 300 --out file/out",
    ],
)
def test_an_out_below_a_file_is_one_sentence(
    words: str, folder: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`eval` and `compare` say so before they open the model, which is not there either."""
    (place / "file").write_text("mine")
    assert main([word.replace("FOLDER", folder) for word in words.split()]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("opensiglip: --out file/out") and "; name another " in said


def test_a_task_that_a_model_has_not_is_one_sentence(
    place: Path, folder: str, small: Any, pipeline: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Model.new(small("siglip").architecture, len(pipeline))
    Pretrained.of(model, pipeline, name="tiny").save(place / "tiny")
    assert main(["eval", "tiny", "--data", folder, "--tasks", "captioning"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith("captioning: the model has no decoder trained to write captions; name other --tasks.")


def test_a_function_that_returns_no_recipe_is_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "mine.py").write_text("def mine():\n    return 5\n")
    words = ["train", "mine.py:mine", "--data", "scenes", "--out", "run"]
    assert complaint(words, capsys) == "recipe mine returns int; let it return a Recipe."


def test_a_function_that_the_file_has_not_is_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "mine.py").write_text("x = 1\n")
    for name in ("y", "x"):
        words = ["train", f"mine.py:{name}", "--data", "scenes", "--out", "run"]
        assert f"mine.py has no function '{name}'" in complaint(words, capsys)


def test_a_recipe_of_the_users_own_trains(
    recipe: str, folder: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", recipe, "--data", folder, "--data", folder, "--out", "run", "--steps", "2", "--batch-size", "8"]
    words += ["--workers", "0", "--held-out", "2", "--precision", "fp32", "--vocabulary", "300", "--parallel", "1"]
    assert main(words) == 0
    said = capsys.readouterr()
    for part in (
        "48 images, 48 texts, 48 regions",
        "7 negatives for each image",
        "tasks cap aref gcap",
        "run/report.html",
    ):
        assert part in said.out
    assert (place / "run" / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_lists_the_commands(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    said = capsys.readouterr().out
    assert all(f"• {command} " in said for command in COMMANDS)


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


def test_recipes_lists_every_paper(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["recipe", *RECIPES]
    row = next(line for line in lines if line.startswith("siglip2"))
    assert all(part in row for part in ("arXiv:2502.14786", "sigmoid + caption", "cap aref gcap"))


@pytest.mark.parametrize("name", RECIPES)
def test_help_on_a_recipe_names_every_keyword(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", name, "--help-all"]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    keywords = [*find_recipe(name).__kwdefaults__, "data", "out", "steps", "batch_size", "lr", "resume", "held_out"]
    flags = [keyword.replace("_", "-") for keyword in keywords]
    assert all(f"--{flag}" in said or f"--no-{flag}" in said for flag in flags)
    assert "peak learning rate" in said and "tokens per text" in said


def test_train_without_a_recipe_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"• {name} " in said for name in RECIPES)


def test_data_show_counts_and_draws(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", SCENES, "--languages", "en,de", "--out", "sheet.png"]) == 0
    said = capsys.readouterr().out
    assert "licence" in said and "en" in said and said.endswith("contact sheet: sheet.png\n")
    with Image.open("sheet.png") as sheet:
        assert sheet.format == "PNG"


def test_an_interrupted_command_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(words: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("opensiglip.apps.cli.run", interrupt)
    assert main(["recipes"]) == 130
    assert capsys.readouterr().err == "opensiglip: stopped.\n"


CONTINUED = "train siglip2 --continue-from old"
QUICK = [
    "--help",
    "train --help",
    "train siglip2 --help",
    "train mine.py:heavy --help",
    "bench sigmoid --help",
    "study --help",
    "trian",
    "train siglp2",
    "train siglip2 --dat scenes",
    f"{CONTINUED} --help",
    f"{CONTINUED} --out run --dat scenes",
    f"{CONTINUED} --out run --parallel 2",
    "train siglip2 --data scenes --out run --lr 0",
    "train siglip2 --data scenes --out run --parallel 2",
    "train mine.py:heavy --data scenes --out run --parallel 3",
    "eval run --taks all",
    *(f"{name} --help" for name, command in COMMANDS.items() if isinstance(command, Command)),
]
MINE = """
from typing import Annotated

from opensiglip.bounds import Bounds
from opensiglip.recipes import Recipe, siglip2

SHARE = 0.5


def heavy(*, parallel: Annotated[float, Bounds(at_least=0, at_most=1)] = SHARE) -> Recipe:
    '''SigLIP 2 as I want it.'''
    return siglip2(size="tiny", parallel=parallel)
"""


def test_help_and_what_is_mistyped_are_answered_without_torch(place: Path) -> None:
    (place / "mine.py").write_text(MINE)
    (place / "old").mkdir()
    (place / "old" / "config.json").write_text(
        json.dumps({"recipe": "siglip2", "train": {"data": ["scenes"]}, "keywords": {}})
    )
    script = (
        "import sys; from opensiglip.apps.cli import main; slow = {'torch', 'transformers', 'datasets', 'numpy'}\n"
        f"for words in {QUICK}:\n"
        "    main(words.split()); print('---', words, sorted(slow & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=place, env=os.environ | OURS
    )
    assert done.returncode == 0, done.stderr
    imported = [line for line in done.stdout.splitlines() if line.startswith("---")]
    assert imported == [f"--- {words} []" for words in QUICK]
    assert all(f"--parallel {value}.0 is out of range" in done.stderr for value in (2, 3))
    assert "SigLIP 2 as I want it." in done.stdout and "(default: 0.5)" in done.stdout


def test_every_command_is_a_function_whose_flags_are_read_without_importing_it() -> None:
    for command in COMMANDS.values():
        if isinstance(command, Command):
            read, _ = signature.read_plain(signature.file_of(command.module), command.function)
            function = getattr(import_module(command.module), command.function)
            assert read.parameters == inspect.signature(function).parameters


def test_what_the_syntax_tree_does_not_say_is_imported(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "mine.py").write_text(
        "from functools import partial\nfrom opensiglip.recipes import siglip2\nmine = partial(siglip2, length=32)\n"
    )
    assert main(["train", "mine.py:mine", "--help-all"]) == 0
    assert "(default: 32)" in capsys.readouterr().out


def test_a_file_that_is_not_python_is_one_sentence(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "mine.py").write_text("def mine(:\n")
    words = ["train", "mine.py:mine", "--data", "scenes", "--out", "run"]
    assert "recipe file mine.py is not Python" in complaint(words, capsys)


def test_what_the_console_cannot_write_is_escaped(place: Path) -> None:
    script = "import sys; from opensiglip.apps.cli import main; sys.exit(main(['fl\\u00fc\\udcfc']))"
    environment = os.environ | OURS | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, env=environment, cwd=place)
    assert done.returncode == 2
    assert done.stderr.startswith(b"opensiglip: no such command: 'fl\\xfc\\udcfc'")


@pytest.mark.parametrize(("words", "name"), [("bench sigmoid", "benchmarks"), ("study objectives --out x", "studies")])
def test_what_only_a_clone_has_is_one_sentence_elsewhere(
    words: str, name: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("opensiglip.apps.commands.CLONE", place)
    said = f"{name} are not part of the installed package; clone the repository and run `make setup` there."
    assert complaint(words.split(), capsys) == said
    assert main(["--help"]) == 0 and "bench" in capsys.readouterr().out


def test_a_sentence_of_several_ranks_is_printed_once_with_the_rank(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank, sentence in ((1, "photos is missing."), (0, "photos is missing."), (0, "the disk is full.")):
        (place / "attempt_0" / str(rank)).mkdir(parents=True, exist_ok=True)
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(place / "attempt_0" / str(rank) / "error.json"))
        say(sentence, 2)
    said = capsys.readouterr().err.splitlines()
    assert said == ["opensiglip (rank 1): photos is missing.", "opensiglip: the disk is full."]


def test_a_sentence_has_at_most_two_thousand_letters_and_keeps_both_its_ends() -> None:
    whole = "x" * 1901
    assert str(UserError(whole)) == whole
    found = UserError(f"model.json names {'y' * 1_000_000}; give another.")
    assert str(found).startswith("model.json names yyy") and str(found).endswith("yyy; give another.")
    assert len(str(found)) == 1901
    assert str(pickle.loads(pickle.dumps(found))) == str(found)  # as it comes from a worker


def test_the_recipe_in_the_docs_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs" / "how-to" / "train-on-your-data.md").read_text(encoding="utf-8")
    block = next(text for text in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "heavy_captions" in text)
    (tmp_path / "my_runs.py").write_text(block)
    monkeypatch.chdir(tmp_path)
    recipe = find_recipe("my_runs.py:heavy_captions")(size="tiny", caption_weight=3.0)
    assert {o.name: o.weight for o in recipe.objectives}["caption"] == 3.0
    assert len(recipe.objectives) == 4


def test_a_reader_that_has_enough_gets_no_traceback() -> None:
    command = subprocess.Popen(
        [sys.executable, "-m", "opensiglip", "train", "siglip2", "--help"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert command.stdout is not None and command.stderr is not None
    command.stdout.close()
    assert command.communicate(timeout=60)[1] == ""
    assert command.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_an_output_that_takes_no_more_is_a_sentence() -> None:
    with Path("/dev/full").open("w") as full:
        words = [sys.executable, "-m", "opensiglip", "recipes"]
        command = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert command.stderr == "opensiglip: the output can't be written (No space left on device); make room.\n"
    assert command.returncode == 2
