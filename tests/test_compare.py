"""Models side by side: differences are paired, and only of what can be compared."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opensiglip.apps.cli import main
from opensiglip.errors import UserError
from opensiglip.evaluation.compare import compare, table
from opensiglip.evaluation.metrics.intervals import mean_with_interval, paired_difference, split_values


def evaluation(folder: Path, name: str, scores: list[float], **changes: Any) -> str:
    """What `opensiglip eval --out` leaves of one task."""
    figures, values = split_values({"images": 40, **mean_with_interval("accuracy", scores, range(len(scores)))})
    facts = {"model": name, "data": "scenes", "split": "val", "examples": len(scores), "seed": 0}
    stored = facts | {"tasks": {"grounding": figures}, "values": {"grounding": values}} | changes
    (folder / name).mkdir()
    (folder / name / "evaluation.json").write_text(json.dumps(stored))
    return str(folder / name)


def hits(seed: int, count: int = 400) -> np.ndarray:
    return (np.random.default_rng(seed).random(count) < 0.5).astype(float)


def test_pairing_sees_what_two_intervals_hide(tmp_path: Path) -> None:
    """The second model is right wherever the first is, and in twelve more of 400."""
    one = hits(0)
    two = one.copy()
    two[np.flatnonzero(one == 0)[:12]] = 1
    names, (row,) = compare([evaluation(tmp_path, "one", one.tolist()), evaluation(tmp_path, "two", two.tolist())])
    assert names == ["one", "two"]
    value, low, high = row.differences[0] or []
    assert value == pytest.approx(12 / 400) and 0 < low < value < high < 0.06
    assert row.intervals[0] is not None and row.intervals[1] is not None
    assert row.intervals[0][1] > row.intervals[1][0], "by themselves the intervals overlap"
    assert "+0.030 [" in table(names, [row]) and "]*" in table(names, [row])


def test_the_interval_is_that_of_the_mean_of_differences() -> None:
    one, two = hits(1), hits(2)
    baseline, gained = [split_values(mean_with_interval("x", some.tolist(), range(400)))[1]["x"] for some in (one, two)]
    found = paired_difference(gained, baseline)
    direct = mean_with_interval("x", (two - one).tolist(), range(400))
    assert found == pytest.approx((direct["x"], *direct["x_ci95"]))


def test_other_examples_are_no_pair() -> None:
    one = split_values(mean_with_interval("x", [0, 1, 1], [0, 0, 1]))[1]["x"]
    other = split_values(mean_with_interval("x", [0, 1, 1], [0, 1, 1]))[1]["x"]
    assert paired_difference(one, other) is None


def test_a_figure_without_single_values_has_a_difference_without_interval(tmp_path: Path) -> None:
    paths = [evaluation(tmp_path, name, hits(3).tolist(), values={}) for name in ("one", "two")]
    names, (row,) = compare(paths)
    assert row.differences == [[0.0]] and "+0.000" in table(names, [row])


def test_values_are_kept_apart_also_inside() -> None:
    inner = mean_with_interval("accuracy", [1, 0], [0, 1])
    figures, values = split_values({"images": 2, **inner, "kinds": {"swap": inner}})
    assert set(figures) == {"images", "accuracy", "accuracy_ci95", "kinds"}
    assert set(figures["kinds"]["swap"]) == {"accuracy", "accuracy_ci95"}
    one = {"scores": [1.0, 0.0], "clusters": [0, 1]}
    assert values == {"accuracy": one, "kinds: swap: accuracy": one}


def test_the_command_writes_a_table_a_plot_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [evaluation(tmp_path, f"m{seed}", hits(seed).tolist()) for seed in range(3)]
    assert main(["compare", *paths, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "C  m2" in said and "C - A" in said and "accuracy" in said
    stored = json.loads((tmp_path / "out/compare.json").read_text())
    assert stored["models"] == ["m0", "m1", "m2"] and len(stored["rows"][0]["differences"]) == 2
    assert (tmp_path / "out/compare.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"examples": 3}, "not evaluated on the same examples"),
        ({"split": "test"}, "not evaluated on the same examples"),
        ({"tasks": 7}, "is not an evaluation"),
        ({"tasks": {}, "values": {}}, "no two of these models have a metric in common"),
        ({"tasks": {"grounding": {"accuracy": 1, "accuracy_ci95": "no"}}}, "is not an evaluation"),
    ],
)
def test_what_can_not_be_compared_is_said(tmp_path: Path, changes: Any, words: str) -> None:
    first = evaluation(tmp_path, "one", hits(0).tolist())
    with pytest.raises(UserError, match=words):
        compare([first, evaluation(tmp_path, "two", hits(1).tolist(), **changes)])


def test_a_model_without_an_evaluation_needs_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = evaluation(tmp_path, "one", hits(0).tolist())
    assert main(["compare", first, str(tmp_path)]) == 2
    assert "give --data" in capsys.readouterr().err
    assert main(["compare", first]) == 2
    assert "two models" in capsys.readouterr().err


def test_a_difference_without_interval_says_why(tmp_path: Path) -> None:
    first = evaluation(tmp_path, "one", hits(3).tolist())
    others = split_values(mean_with_interval("accuracy", hits(3).tolist(), [0, *range(399)]))[1]
    names, (row,) = compare([first, evaluation(tmp_path, "two", hits(3).tolist(), values={"grounding": others})])
    assert row.differences == [[0.0]] and row.reasons == ["judged on other examples"]
    assert "no interval of a difference (judged on other examples): grounding: accuracy" in table(names, [row])


def test_the_page_of_a_comparison_marks_what_is_more_than_chance(tmp_path: Path) -> None:
    one = hits(0)
    better, same = one.copy(), one.copy()
    better[np.flatnonzero(one == 0)[:60]] = 1
    same[:2] = 1 - same[:2]
    folders = [
        evaluation(tmp_path, name, some.tolist()) for name, some in (("<one>", one), ("better", better), ("same", same))
    ]
    assert main(["compare", *folders, "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "&lt;one&gt;" in page and "<one>" not in page
    assert page.count("▲ +0.150") == 1, "60 of 400"
    assert page.count("▲") == 2 and page.count("▼") == 1, "one difference and the legend"
    assert (
        'loading="lazy"' in page and "data:image/png;base64," in page and "http" not in page.replace("http-equiv", "")
    )
