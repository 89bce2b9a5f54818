"""`data balance` on planted bias: both kinds of moments come within tolerance at the least distance from 1."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from opensiglip.apps.cli import main
from opensiglip.data.example import Caption, Example
from opensiglip.data.sources.python import spec_of
from opensiglip.data.sources.registry import open_source
from opensiglip.data.weighting import attributes, balance
from opensiglip.data.weighting.attributes import Shown, Stretch, read_attributes
from opensiglip.data.weighting.balance import facts, moments_of, solve
from opensiglip.data.weighting.file import read_weights
from opensiglip.data.weighting.lexicon import Lexicon
from opensiglip.errors import UserError

optimize = pytest.importorskip("scipy.optimize")


def example(text: str = "", language: str = "en", **extras: Any) -> Example:
    captions = (Caption(text, language),) if text else ()
    return Example(torch.zeros(3, 2, 2, dtype=torch.uint8), captions, (), "", extras)


def planted(rows: int = 3000) -> list[Example]:
    """Captions: half of people, of whom 30 % are women; of nurses 80 %, of engineers 10 %. The rest are of things."""
    rng, found = np.random.default_rng(0), []
    for row in range(rows):
        if row % 2:
            found.append(example(f"A table, number {row}."))
            continue
        job = ["nurse", "engineer", "walker"][rng.choice(3, p=[0.1, 0.1, 0.8])]
        woman = rng.random() < {"nurse": 0.8, "engineer": 0.1, "walker": 0.27}[job]
        found.append(example(f"{'The woman' if woman else 'A man'} is a {job}."))
    return found


def shown_of(counts: dict[frozenset[tuple[str, str]], int]) -> Shown:
    patterns = tuple(counts)
    return Shown(patterns, np.repeat(np.arange(len(patterns), dtype=np.int32), list(counts.values())), Counter())


def value(name: str) -> tuple[str, str]:
    attribute, _, one = name.partition("=")
    return attribute, one


def pattern(*names: str) -> frozenset[tuple[str, str]]:
    return frozenset(value(name) for name in names)


def test_planted_bias_is_balanced_within_the_tolerance_and_the_effective_sample_size_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = planted()
    spec, out = spec_of({"train": rows, "val": rows[:1]}), tmp_path / "weights.parquet"
    words = ["data", "balance", spec, "--sensitive", "gender", "--targets", "occupation", "--tolerance", "0.02"]
    assert main([*words, "--out", str(out), "--workers", "0"]) == 0
    weights = read_weights(out, open_source(spec))
    assert weights.mean() == pytest.approx(1, abs=1e-6) and weights.min() >= 0 and weights.max() <= 5 + 1e-6
    texts = [row.captions[0].text for row in rows]
    women, people = (np.array([word in text for text in texts]) for word in ("woman", " is a "))
    before, after = (w[people & women].sum() / w[people].sum() for w in (np.ones(3000), weights))
    assert before < 0.35 and 0.015 < 0.5 - after <= 0.02, "no nearer than was asked for"
    for job in ("nurse", "engineer"):
        of = np.array([job in text for text in texts])
        most = 0.02 * 0.5 * np.sqrt(1500 / of.sum() - 1)
        assert abs(weights[of & women].sum() / weights[of].sum() - 0.5) <= most < 0.04
        assert abs(correlation(women[people], of[people], np.ones(1500))) > 0.15
        assert abs(correlation(women[people], of[people], weights[people])) < 0.035
    told = json.loads(out.with_suffix(".json").read_text())
    effective = weights.sum() ** 2 / (weights**2).sum()
    assert told["effective_rows"] == pytest.approx(effective, rel=1e-5) and effective < 2900
    assert told["rows_that_show"] == {
        "gender": 1500,
        "occupation": sum(" nurse" in t or "engineer" in t for t in texts),
    }
    assert all(abs(one["moment"][1]) <= 0.02 for one in told["moments"]) and len(told["moments"]) == 6
    said = capsys.readouterr().out
    assert f"effective sample size {effective:.0f} of 3000 rows" in said
    print(said)  # shown by -rP: docs/how-to/balance.md has it
    assert main([*words, "--out", str(out), "--workers", "0", "--most", "1.1"]) == 2
    assert "no weights up to --most 1.1 bring " in capsys.readouterr().err


def correlation(one: np.ndarray, other: np.ndarray, weights: np.ndarray) -> float:
    moments = np.cov(one, other, aweights=weights)
    return float(moments[0, 1] / np.sqrt(moments[0, 0] * moments[1, 1]))


def test_two_values_alone_have_the_weights_of_arithmetic() -> None:
    shown = shown_of({pattern("gender=male"): 800, pattern("gender=female"): 200})
    weights = solve(shown.counts, moments_of(shown, ["gender"], []), 0.01, 5)
    assert weights == pytest.approx([0.5099 / 0.8, 0.4901 / 0.2], abs=1e-4)
    found = facts(shown, moments_of(shown, ["gender"], []), weights)
    assert found["effective_rows"] == pytest.approx(1000 / (0.5099**2 / 0.8 + 0.4901**2 / 0.2), rel=1e-3)


def test_the_weights_are_those_of_least_distance_from_one() -> None:
    """As another method finds them, which knows nothing of the dual."""
    rng = np.random.default_rng(1)
    counts = {pattern(): 400}
    for sex in ("female", "male"):
        for job in ("nurse", "pilot", "cook"):
            counts[pattern(f"gender={sex}", f"job={job}")] = int(rng.integers(10, 200))
    shown = shown_of(counts)
    moments, mass = moments_of(shown, ["gender"], ["job"]), shown.counts / shown.counts.sum()
    found = solve(shown.counts, moments, 0.03, 1.6)
    assert np.sum(found > 1.6 - 1e-6) == 3 and found.max() < 1.6 + 1e-6, "the bound is met, too"
    inside = 0.99 * 0.03
    limits = [
        {"type": "ineq", "fun": lambda w, m=moment, s=sign: (mass * w) @ (inside * m.shown - s * m.terms)}
        for moment in moments
        for sign in (1, -1)
    ]
    other = optimize.minimize(
        lambda w: mass @ (w - 1) ** 2,
        np.ones(len(mass)),
        bounds=[(0, 1.6)] * len(mass),
        constraints=[*limits, {"type": "eq", "fun": lambda w: mass @ w - 1}],
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert other.success and found == pytest.approx(other.x, abs=2e-4)


def test_balanced_data_keeps_weights_of_one() -> None:
    even = {pattern(f"gender={sex}", f"job={job}"): 50 for sex in ("female", "male") for job in ("nurse", "pilot")}
    shown = shown_of(even | {pattern(): 10})
    assert solve(shown.counts, moments_of(shown, ["gender"], ["job"]), 0.01, 5) == pytest.approx(np.ones(5), abs=1e-6)


def test_a_row_of_several_values_counts_in_equal_parts() -> None:
    both = pattern("gender=female", "gender=male")
    shown = shown_of({pattern("gender=male"): 100, pattern("gender=female"): 100, both: 300})
    assert [moment.of(shown.counts.astype(float)) for moment in moments_of(shown, ["gender"], [])] == [0, 0]


def test_what_no_weights_can_do_is_a_sentence_that_names_the_moment() -> None:
    shown = shown_of({pattern("gender=male"): 950, pattern("gender=female"): 50})
    with pytest.raises(UserError, match=r"up to --most 5 bring gender=(fe)?male within --tolerance 0.01"):
        solve(shown.counts, moments_of(shown, ["gender"], []), 0.01, 5)
    apart = {("female", "nurse"): 500, ("male", "nurse"): 1, ("female", "pilot"): 1, ("male", "pilot"): 500}
    shown = shown_of({pattern(f"gender={sex}", f"job={job}"): n for (sex, job), n in apart.items()})
    with pytest.raises(UserError, match=r"bring gender=(fe)?male with job=(nurse|pilot) within"):
        solve(shown.counts, moments_of(shown, ["gender"], ["job"]), 0.01, 5)
    with pytest.raises(UserError, match="nothing to balance it with"):
        moments_of(shown_of({pattern("gender=male"): 9}), ["gender"], [])


def test_more_sets_of_values_than_memory_holds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(spec_of([example("a woman"), example("a man"), example("a table")]))
    monkeypatch.setattr(attributes, "PATTERNS", 2)
    with pytest.raises(UserError, match="more than 2 different sets of values; name attributes of fewer"):
        read_attributes(source, ["gender"], Lexicon.load(), 0)
    monkeypatch.setattr(balance, "CELLS", 5)
    shown = shown_of({pattern(f"gender={sex}"): 2 for sex in ("female", "male")} | {pattern(): 1})
    with pytest.raises(UserError, match="6 moments x sets of values are too many"):
        moments_of(shown, ["gender"], [])


def test_a_row_shows_what_its_column_says_else_its_groups_else_its_captions() -> None:
    stretch = Stretch(open_source(spec_of([example("a")])), ("gender", "label"), Lexicon.load())
    of = stretch.of
    assert of(example("a woman", label="cat")) == pattern("gender=female", "label=cat")
    assert of(example("a woman", groups={"gender": "male"})) == pattern("gender=male")
    assert of(example("a woman", groups={"gender": ["x", "y"]})) == pattern("gender=x", "gender=y")
    assert of(example("a table")) == of(example()) == pattern()


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("Women's shoes", "en", {"gender=female"}),
        ("A human, a mantle and a womanizer", "en", set()),
        ("The man's mother is a Police  Officer!", "en", {"gender=male", "gender=female", "occupation=police officer"}),
        ("officer of the police", "en", set()),
        ("Eine FRAU und ihr Großvater", "de", {"gender=female", "gender=male"}),
        ("l'homme et la sœur", "fr", {"gender=male", "gender=female"}),
        ("una niña", "es", {"gender=female"}),
        ("una niña", "en", set()),
    ],
)
def test_the_lists_that_ship_find_whole_words_of_the_captions_language(
    text: str, language: str, expected: set[str]
) -> None:
    assert Lexicon.load().named([Caption(text, language)]) == {value(name) for name in expected}


def test_bad_lists_attributes_and_flags_are_refused_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, file = spec_of([example("a woman"), example("a man")]), tmp_path / "lists.json"
    for text in ("[", "{}", '{"a": {"b": {"en": "x"}}}', '{"a": {"b": {"en": ["!"]}}}', '{"a": []}', "[" * 100_000):
        file.write_text(text)
        with pytest.raises(UserError, match=f"--lexicon {file} is not JSON of"):
            Lexicon.load(file)
    file.write_text('{"hat": {"cap": {"en": ["cap"]}}}')
    words = ["data", "balance", spec, "--out", str(tmp_path / "w.parquet"), "--workers", "0"]
    for flags, said in (
        (["--sensitive", "hat", "--lexicon", str(file)], "no row of .* shows 'hat'"),
        (["--sensitive", "gender", "--targets", "gender"], "each one only once"),
        (["--sensitive", "gender", "--most", "1"], "--most 1.0 is out of range"),
        (["--sensitive", "gender", "--tolerance", "0"], "--tolerance 0.0 is out of range"),
    ):
        assert main([*words, *flags]) == 2
        assert re.search(said, capsys.readouterr().err)
    assert not (tmp_path / "w.parquet").exists()


@pytest.mark.parametrize("command", [["balance", "--sensitive", "gender"], ["dedup"]])
def test_weights_go_to_a_file_that_the_figures_beside_do_not_replace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    name, *flags = command
    words = ["data", name, spec_of([example("a woman"), example("a man")]), *flags, "--workers", "0", "--out"]
    (tmp_path / "file").touch()
    for out, said in (
        (tmp_path / "w.json", "must be a parquet file"),
        (tmp_path, "must be a parquet file"),
        (tmp_path / "file" / "w.parquet", "can't be written to"),
    ):
        assert main([*words, str(out)]) == 2
        assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_languages_may_have_the_weights_that_train_is_given(tmp_path: Path) -> None:
    spec, out = spec_of([example("a woman"), example("a man")]), tmp_path / "w.parquet"
    assert (
        main(
            [
                "data",
                "balance",
                spec,
                "--sensitive",
                "gender",
                "--languages",
                "en:1",
                "--out",
                str(out),
                "--workers",
                "0",
            ]
        )
        == 0
    )
    assert out.is_file()
