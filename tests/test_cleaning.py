"""Texts cleaned of what is no description, and a tokenizer trained on them."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from opensiglip.apps.cli import main
from opensiglip.data.cleaning import clean_alt_text
from opensiglip.data.coverage import cover
from opensiglip.data.example import BrokenExample, Caption
from opensiglip.data.sources.registry import open_source
from opensiglip.data.sources.spec import parse_spec, split_weight, with_clean
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError


@pytest.mark.parametrize(
    "text, cleaned, rules",
    [
        ("a red apple", "a red apple", []),
        ("2 < 3 & 5 > 4, said the dog", "2 < 3 & 5 > 4, said the dog", []),
        ("a_b and 3 * 4 * 5", "a_b and 3 * 4 * 5", []),
        ("Tom &amp; Jerry&#39;s <b>house</b><br/>", "Tom & Jerry's house", ["html", "blanks"]),
        ("![a dog](https://x.org/a.png) on [grass](/g \"t\")", "a dog on grass", ["markdown"]),
        ("# **Red** _car_ in `town`", "Red car in town", ["markdown"]),
        ("a cat, see https://cats.org/?q=1 or me@cats.org", "a cat, see or", ["url", "blanks"]),
        ("IMG_1234.JPG", "", ["file name", "blanks"]),
        ("sunset over Lake_Como-02.jpeg", "sunset over", ["file name", "blanks"]),
        ("Image may contain: a dog", "a dog", ["noise", "blanks"]),
        ("Red rose, stock photo | Shutterstock", "Red rose", ["noise", "blanks"]),
        ("a beach 1920x1080 (click to enlarge)", "a beach", ["noise", "blanks"]),
        ("ein   Hund  –  ", "ein Hund", ["blanks"]),
    ],
)  # fmt: skip
def test_each_rule_takes_out_its_own_and_is_named(text: str, cleaned: str, rules: list[str]) -> None:
    assert clean_alt_text(text) == (cleaned, rules)


@given(st.text(alphabet='a*_`#[]()!<>&;:/.@|-x1 \n"~', max_size=300))
def test_any_text_is_cleaned_without_end_or_growth(text: str) -> None:
    cleaned, _ = clean_alt_text(text)
    assert len(cleaned) <= len(text) + 1


@pytest.mark.parametrize("piece", ["[", "![a](", "**a", "<a ", "a@a.", "<!--", "_ _", "- ", "click to enlarge ("])
def test_texts_made_to_take_long_do_not(piece: str) -> None:
    clean_alt_text(piece * (20_000 // len(piece)))  # the test's time is the check: a quadratic rule takes minutes


def write(root: Path) -> str:
    root.mkdir()
    lines = []
    for number in range(60):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(root / f"{number}.png")
        texts = [{"lang": "en", "text": f"a &quot;dog&quot; {number}"}, {"lang": "de", "text": "der **Hund** läuft"}]
        texts += [{"lang": "en", "text": "https://x.org/only"}]
        row = {"file_name": f"{number}.png", "captions_i18n": texts, "split": "val" if number > 55 else "train"}
        lines.append(json.dumps(row if number else {"file_name": "0.png", "caption": "photo.jpg", "split": "train"}))
    (root / "metadata.jsonl").write_text("\n".join(lines))
    return str(root)


def test_a_source_is_cleaned_where_its_spec_says_so_and_not_else(tmp_path: Path) -> None:
    spec = write(tmp_path / "data")
    assert open_source(spec).example(1).captions[0] == Caption("a &quot;dog&quot; 1", "en")
    source = open_source(f"{spec}?clean=alt-text=2")
    assert source.weight == 2
    assert source.example(1).captions == (Caption('a "dog" 1', "en"), Caption("der Hund läuft", "de"))
    with pytest.raises(BrokenExample, match="cleaning leaves no text"):
        source.example(0)
    assert "&quot;" not in "".join(source.texts()) and source.group(1) == open_source(spec).group(1)
    assert source.describe()["cleaned_of_166_texts"]["cleaned: url"] == 55
    with pytest.raises(UserError, match="clean=all is unknown"):
        open_source(f"{spec}?clean=all")


@pytest.mark.parametrize(
    "spec", ["a", "a=0.3", "a?text=b", "a?text=b=0.3", "a:box_format=xywh", "a?text=b:box_format=xywh=2.0"]
)
def test_a_flag_adds_the_option_whatever_else_the_spec_says(spec: str) -> None:
    name, weight = split_weight(with_clean(spec, "alt-text"))
    parsed, before = parse_spec(name, ()), parse_spec(split_weight(spec)[0], ())
    assert parsed.options == before.options | {"clean": "alt-text"} and parsed.layout == before.layout
    assert weight == split_weight(spec)[1] and parsed.path == before.path
    assert with_clean(spec, None) == spec


def test_what_is_cleaned_is_counted_by_stats_and_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = write(tmp_path / "data")
    for words in (["stats", spec], ["convert", spec, "--out", str(tmp_path / "out")]):
        assert main(["data", *words, "--clean", "alt-text", "--workers", "0"]) == 0
        said = capsys.readouterr().out
        assert "cleaned: html: 59" in said and "cleaning leaves no text" in said
    assert open_source(str(tmp_path / "out")).example(0).captions[1] == Caption("der Hund läuft", "de")


def test_a_tokenizer_is_trained_told_of_and_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec, out = write(tmp_path / "data"), tmp_path / "out"
    words = ["--out", str(out), "--size", "320", "--clean", "alt-text", "--length", "4"]
    assert main(["tokenizer", "train", spec, *words]) == 0
    said = capsys.readouterr().out
    facts = json.loads((out / "coverage.json").read_text())
    assert set(facts["languages"]) == {"en", "de"} and facts["languages"]["de"]["texts"] == 55
    assert "cleaned: markdown: 55" in said and "280 entries; use it with --tokenizer" in said
    pipeline = TextPipeline.load(str(out), 64)
    assert pipeline.text(pipeline.ids("der Hund läuft")) == "der hund läuft"
    assert facts["languages"]["de"]["longest"] == len(pipeline.ids("der Hund läuft")) + 1
    assert main(["tokenizer", "train", spec, "--out", str(out), "--size", "9"]) == 2
    assert main(["tokenizer", "train", spec, "--out", str(out), "--languages", "fr"]) == 2


def test_letters_that_fall_apart_are_told() -> None:
    pipeline = TextPipeline.train(["a dog on grass"] * 20, size=300, length=8)
    assert cover(pipeline, ["a dog"]).covered == 1
    found = cover(pipeline, ["狗"])
    assert found.covered < 0.5 and found.letters_per_token == pytest.approx(1 / len(pipeline.ids("狗")))
    assert cover(pipeline, ["a dog on grass"] * 3 + ["x" * 99]).over_length == 0.25
