"""The command line: bad input is one sentence and exit code 2, before anything is written."""

import contextlib
import io
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from opensiglip import __version__
from opensiglip.apps.cli import main
from opensiglip.recipes import RECIPES
from opensiglip.training.record import find

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
        ("fly", "no such command: 'fly'"),
        ("data", "`opensiglip data` has one command"),
        ("data show nowhere", "no such source: nowhere"),
        ("data show scenes:objects=0", "objects=0 is not a whole number from 1 to 9"),
        ("data show scenes --fast", "unrecognized"),
        ("train nothing --data scenes --out run", "no such recipe: 'nothing'"),
        ("train none.py:small --data scenes --out run", "recipe file none.py does not exist"),
    ],
)
def test_a_command_that_is_none_is_one_sentence(
    words: str, part: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert part.lower() in complaint(words.split(), capsys).lower()
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ("--fast", "Unrecognized options: --fast"),
        ("--steps many", "steps"),
        ("--lr", "lr"),
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
        ("--steps 3 --epochs 1", "--steps and --epochs both say how long"),
        ("--batch-size 0", "--batch-size 0 is out of range"),
        ("--batch-size -8", "--batch-size -8 is out of range"),
        ("--accumulate 0", "--accumulate 0 is out of range"),
        ("--batch-size 10 --accumulate 4", "--batch-size 10 is not divisible by 1 ranks x --accumulate 4"),
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
        ("--precision fp8", "--precision 'fp8' is unknown; give auto, fp32 or bf16"),
        ("--trackers paper", "--trackers paper is unknown or not installed; there are tensorboard"),
        ("--languages tlh", "scenes do not speak 'tlh'"),
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


@pytest.mark.parametrize(("words", "part"), [("--out run", "--data"), (f"--data {SCENES}", "--out"), ("", "--out")])
def test_what_a_run_needs_is_asked_for(words: str, part: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert part in complaint(["train", "siglip2", *words.split()], capsys)
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(("words", "part"), [("", "--out"), ("--out run --nonsense 3", "--nonsense")])
def test_where_no_frame_can_be_drawn_it_is_one_sentence_too(
    words: str, part: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.redirect_stdout(io.StringIO()):  # no encoding: tyro draws rules of hyphens
        said = complaint(["train", "siglip2", *words.split()], capsys)
    assert part in said and "----" not in said


def test_an_existing_run_is_not_overwritten(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "run").mkdir()
    (place / "run" / "config.json").write_text("{}")
    words = ["train", "siglip2", "--size", "tiny", "--data", SCENES, "--out", "run"]
    assert "--out run already holds a run; go on with --resume" in complaint(words, capsys)
    assert (place / "run" / "config.json").read_text() == "{}"


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
    assert all(f"\n  {command} " in said for command in ("train", "recipes", "data"))


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
    with pytest.raises(SystemExit) as stop:
        main(["train", name, "--help"])
    assert stop.value.code == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    keywords = [*find(name).__kwdefaults__, "data", "out", "steps", "batch_size", "lr", "resume", "held_out"]
    assert all(f"--{keyword.replace('_', '-')}" in said for keyword in keywords)
    assert "peak learning rate" in said and "tokens of a text" in said


def test_train_without_a_recipe_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in RECIPES)
    assert main(["train"]) == 2


def test_data_show_counts_and_draws(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", SCENES, "--languages", "en,de", "--out", "sheet.png"]) == 0
    said = capsys.readouterr().out
    assert "licence" in said and "en" in said and said.endswith("contact sheet: sheet.png\n")
    with Image.open("sheet.png") as sheet:
        assert sheet.format == "PNG"


def test_an_interrupted_run_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(words: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("opensiglip.apps.cli.run", interrupt)
    assert main(["train", "siglip2"]) == 130
    assert "--resume" in capsys.readouterr().err


def test_the_recipe_in_the_docs_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs" / "how-to" / "train-on-your-data.md").read_text(encoding="utf-8")
    block = next(text for text in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "heavy_captions" in text)
    (tmp_path / "my_runs.py").write_text(block)
    monkeypatch.chdir(tmp_path)
    recipe = find("my_runs.py:heavy_captions")(size="tiny", caption_weight=3.0)
    assert {o.name: o.weight for o in recipe.objectives}["caption"] == 3.0
    assert len(recipe.objectives) == 4
