"""The command line's `predict`: answers as text, JSON and pictures; one broken file does not end it."""

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from opensiglip.apps import predict
from opensiglip.apps.cli import main
from opensiglip.data.boxes import BoxFormat
from opensiglip.data.text import TextPipeline
from opensiglip.inference.predictor import load
from opensiglip.models.model import Model
from opensiglip.reports.drawing import draw_outline


@pytest.fixture(scope="module")
def model(small: Any, pipeline: TextPipeline, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An export of random weights."""
    folder = tmp_path_factory.mktemp("export")
    torch.manual_seed(0)
    made = Model.new(small("siglip2").architecture, len(pipeline))
    assert made.decoder is not None
    torch.nn.init.normal_(made.decoder.vocabulary.weight)
    about = {"text": pipeline.save_pretrained(folder), "boxes": str(BoxFormat(top=60)), "languages": ["en"]}
    made.save_pretrained(folder, about | {"tasks": ["cap", "aref", "gcap"]})
    return str(folder)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for place in range(3):
        pixels = np.random.default_rng(place).integers(0, 256, (24, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{place}.png")
    (tmp_path / "1.png").write_bytes(b"no image")
    return tmp_path


def test_every_question_is_answered_as_from_python(
    model: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--caption", "--locate", "a fox", "--describe", "4,4,40,20", "--classify", "a fox, an apple", "--propose"]
    assert main(["predict", model, str(photos), "--json", *words]) == 0
    said = capsys.readouterr()
    assert "1.png is not a readable image" in said.err
    predictor = load(model)
    answers = {answer["image"]: answer for answer in map(json.loads, said.out.splitlines())}
    assert "error" in answers[str(photos / "1.png")] and len(answers) == 3
    path = str(photos / "2.png")
    found = predictor.locate(path, "a fox")
    assert answers[path]["caption"] == predictor.caption(path)
    assert answers[path]["locate"]["box"] == pytest.approx(list(found.box), abs=0.006)
    assert answers[path]["locate"]["score"] == pytest.approx(found.score, abs=6e-5)
    assert answers[path]["describe"] == {"box": [4, 4, 40, 20], "text": predictor.describe(path, (4, 4, 40, 20))}
    assert answers[path]["classify"] == pytest.approx(predictor.classify(path, ["a fox", "an apple"]), rel=1e-4)
    assert [p["phrase"] for p in answers[path]["propose"]] == [p.phrase for p in predictor.propose(path)]
    assert answers[path]["width"] == 48 and answers[path]["height"] == 24


def test_without_a_question_there_is_a_caption_and_a_picture(
    model: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "out.png"
    assert main(["predict", model, str(photos / "0.png"), str(photos / "[12].png"), "--save", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.count("caption") == 2 and str(photos / "2.png") in said
    with Image.open(out) as sheet:
        assert sheet.width == 2 * 336
    assert main(["predict", model, str(photos / "0.png"), "--locate", "a fox", "--save", str(out)]) == 0
    assert "a fox  (" in capsys.readouterr().out
    with Image.open(out) as sheet:
        assert len(sheet.getcolors(maxcolors=1_000_000) or ()) > 100
        assert (213, 94, 0) in {color for _, color in sheet.convert("RGB").getcolors(1_000_000) or ()}  # a box's colour


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["1.png"], "1.png is not a readable image"),
        (["nowhere.png"], "there is no image"),
        (["1.png", "nowhere.png"], "none of the images could be read"),
        (["*.gif"], "no image in *.gif"),
        (["0.png", "--describe", "1,2,3"], "'1,2,3' is not a box"),
        (["0.png", "--describe", "1,2,3,x"], "is not a box"),
        (["0.png", "--describe", "40,4,90,9"], "is not a box of an image of 48 x 24"),
        (["0.png", "--classify", " , "], "--classify has no label"),
        (["0.png", "--locate", " "], "--locate is empty"),
        (["0.png", "--save", "out.jpg"], "should end in .png"),
        ([], "name an image file to ask about"),
        (["--caption"], "name an image file to ask about"),
    ],
)
def test_bad_questions_are_answered_in_a_sentence(
    model: str,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(photos)
    assert main(["predict", model, *words]) == 2
    assert said.lower() in capsys.readouterr().err.splitlines()[-1].lower()


def test_an_image_without_the_box_says_so_and_the_others_are_described(
    model: str, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It alone fills the second batch."""
    Image.new("RGB", (2, 2)).save(photos / "3.png")
    monkeypatch.setattr(predict, "IMAGES", 2)
    files = [str(photos / name) for name in ("0.png", "2.png", "3.png")]
    assert main(["predict", model, *files, "--describe", "10,4,40,20", "--json"]) == 0
    answers = [json.loads(line)["describe"] for line in capsys.readouterr().out.splitlines()]
    assert ["error" in answer for answer in answers] == [False, False, True]


def test_a_model_that_describes_nothing_is_refused_for_several_images_too(
    small: Any, pipeline: TextPipeline, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "siglip"
    folder.mkdir()
    about = {"text": pipeline.save_pretrained(folder)}
    Model.new(small("siglip").architecture, len(pipeline)).save_pretrained(folder, about)
    files = [str(photos / name) for name in ("0.png", "2.png")]
    assert main(["predict", str(folder), *files, "--describe", "10,4,40,20"]) == 2
    said = capsys.readouterr()
    assert not said.out and "can't describe a box" in said.err


def test_a_name_that_is_not_utf8_is_printed_escaped_and_its_image_answered(
    model: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Latin-1 bytes, as old archives unpack them; the console is strict, as Python's own is by default."""
    try:
        (photos / "0.png").rename(photos / os.fsdecode(b"m\xfcll.png"))
    except OSError:
        pytest.skip("this file system takes names of UTF-8 alone")
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="utf-8", errors="strict"))
    assert main(["predict", model, str(photos), "--caption", "--save", str(photos / "out" / "sheet.png")]) == 0
    assert main(["predict", model, str(photos), "--caption", "--json"]) == 0
    sys.stdout.flush()
    said = written.getvalue().decode()
    captions = {line.rpartition("/")[2] for line in said.splitlines() if line.endswith(".png")}
    assert captions == {"m\\udcfcll.png", "2.png"}
    answers = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert len(answers) == 3 and sum("caption" in answer for answer in answers) == 2
    assert (photos / "out" / "sheet.png").is_file()


def test_a_box_outside_one_image_does_not_keep_the_others_from_theirs(
    model: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (20, 20)).save(photos / "1.png")
    assert main(["predict", model, str(photos), "--describe", "4,4,40,20", "--json"]) == 0
    answers = [json.loads(line)["describe"] for line in capsys.readouterr().out.splitlines()]
    assert ["error" in answer for answer in answers] == [False, True, False]


@pytest.fixture(scope="module")
def mixture(small: Any, pipeline: TextPipeline, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An export of random weights that was trained on tasks in two languages."""
    folder = tmp_path_factory.mktemp("mixture")
    torch.manual_seed(0)
    made = Model.new(small("tasks").architecture, len(pipeline))
    assert made.decoder is not None
    torch.nn.init.normal_(made.decoder.vocabulary.weight)
    about = {"text": pipeline.save_pretrained(folder), "boxes": str(BoxFormat(top=60)), "languages": ["en", "de"]}
    made.save_pretrained(folder, about | {"tasks": ["caption", "aref", "answer"]})
    return str(folder)


def test_a_trained_task_is_asked_in_its_own_words(
    mixture: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = str(photos / "2.png"), tmp_path / "out.png"
    assert main(["predict", mixture, path, "--ask", "ARef: a fox :", "--json", "--save", str(out)]) == 0
    said = json.loads(capsys.readouterr().out)
    expected = load(mixture).ask(path, "ARef: a fox :")
    assert (
        said["ask"] == {"text": expected.text, "value": pytest.approx(list(expected.value), abs=0.006)}
        and "caption" not in said
    )
    with Image.open(out) as sheet:
        assert (213, 94, 0) in {color for _, color in sheet.convert("RGB").getcolors(1_000_000) or ()}  # a box's colour
    assert main(["predict", mixture, path, "--ask", "ARef: a fox :"]) == 0
    assert f"answer    {expected.text}" in capsys.readouterr().out
    assert main(["predict", mixture, path, "--ask", "detect fox"]) == 2
    assert '"caption LANGUAGE", "ARef: PHRASE :", "answer en QUESTION"' in capsys.readouterr().err


def test_a_caption_comes_in_the_language_asked_for(
    mixture: str, model: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(photos / "2.png")
    assert main(["predict", mixture, path, "--language", "de", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["caption"] == load(mixture).caption(path, language="de")
    for folder, language in ((mixture, "fr"), (model, "de")):
        assert main(["predict", folder, path, "--language", language]) == 2
        assert f"never saw '{language}'; its captions are in en" in capsys.readouterr().err


def test_an_outline_is_drawn_where_it_lies() -> None:
    black = torch.zeros(3, 40, 40, dtype=torch.uint8)
    assert draw_outline(black, ()) is black
    drawn = draw_outline(black, [(10, 5), (30, 5), (30, 25), (10, 25)])
    rows, columns = drawn.any(0).nonzero(as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (5, 25, 10, 30) and not drawn[:, 15, 20].any()
