"""The study of balanced examples: the bias that it plants, what it weighs, and how it judges; without training."""

from math import log
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from opensiglip.data.sources.registry import open_source
from opensiglip.data.weighting.file import read_weights
from studies import balance


def test_the_planted_bias_is_weighed_away_and_runs_are_judged_in_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("scipy.optimize")
    monkeypatch.setattr(balance, "HELD_OUT", 4)
    trained: list[tuple[str, int, bool]] = []

    def train(recipe: str, **flags: Any) -> None:
        trained.append((flags["out"].name, flags["seed"], "example_weights" in flags))

    def of_men(data: str) -> list[bool]:
        source = open_source(data, split="val")
        texts = [source.example(row).captions[0].text for row in range(len(source))]
        return ["engineer" in text or "pilot" in text for text in texts]

    def evaluate(run: Path, data: str, *_: Any, **__: Any) -> dict[str, Any]:
        scores = [float(man) if run.name == "uniform" else 0.5 for man in of_men(data)]
        return {"values": {"fairness": {"nearer_to_man": {"scores": scores}}}}

    def margins(run: Path, data: str) -> list[float]:
        return [(2.0 if man else -1.0) if run.name == "uniform" else 0.25 for man in of_men(data)]

    monkeypatch.setattr(balance, "train", train)
    monkeypatch.setattr(balance, "evaluate", evaluate)
    monkeypatch.setattr(balance, "margins", margins)
    balance.main(tmp_path, 2, 60)
    assert trained == [(name, seed, name == "balanced") for seed in (0, 1) for name in ("uniform", "balanced")]
    share, margin, *_, data = capsys.readouterr().out.split("\n\n")[-5:]
    assert "uniform             +1.000 [+1.000, +1.000]" in share, "each job is nearer to the gender it mostly has"
    assert "difference, paired  -0.500 [-0.500, -0.500]" in share
    assert (
        "uniform             +1.500 [" in margin and "balanced            +0.000 [" in margin
    )  # (2 + 1) / 2; 0.25 both ways
    source = open_source(str(tmp_path / "people"))
    weights = read_weights(tmp_path / "weights.parquet", source)
    texts = [[one.text for one in source.example(row).captions] for row in range(len(source))]
    odds = []
    for job, share_of_men in balance.MEN.items():
        of = np.array([own[-1].endswith(job) if job else len(own) == 1 for own in texts])
        men = np.array(["a man" in own[0] for own in texts])
        assert of.sum() == 60 and abs((of & men).sum() / 60 - share_of_men) < 0.15
        assert abs(weights[of & men].sum() / weights[of].sum() - 0.5) < 0.05, job  # "" is no target
        odds += [abs(log((of & men).sum() / (of & ~men).sum()))] if job else []
    assert f"uniform             {np.mean(odds):+.3f}" in data


def test_half_of_a_pictures_captions_leave_out_the_job() -> None:
    assert balance.captions("woman", "engineer") == ["a photo of a woman", "a photo of a woman who is an engineer"]
    assert balance.captions("man", "") == ["a photo of a man"]
    assert balance.captions("", "nurse") == ["a photo of a nurse"]
    assert balance.captions("", "") == ["a photo of nothing"]


def test_a_planted_margin_is_the_mean_log_odds_of_the_more_frequent_gender() -> None:
    shown = [(person, job) for job in balance.MEN for person in ("man", "woman")]
    weights = [9, 1, 3, 1, 1, 4, 2, 2, 7, 1]  # engineer, pilot, nurse, teacher and none, men first
    assert balance.planted(shown, weights) == pytest.approx((log(9) + log(3) + log(4) + log(1)) / 4)
    assert balance.planted(shown, [1, 9] + weights[2:]) == pytest.approx((-log(9) + log(3) + log(4)) / 4)


def test_a_margin_is_a_difference_of_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = balance.folder(tmp_path / "jobs", "val", [("", "nurse"), ("", "pilot")])
    image, texts = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([[0.8, 0.6], [0.0, 1.0]])
    asked: list[Any] = []

    def embed_texts(given: Any) -> torch.Tensor:
        asked.extend(given)
        return texts

    model = SimpleNamespace(
        logit_scale=log(10), embed_images=lambda images: image[: len(images)], embed_texts=embed_texts
    )
    monkeypatch.setattr(balance, "load", lambda run: model)
    assert balance.margins(tmp_path, data) == pytest.approx([8.0, 10 * (0.96 - 0.8)], abs=1e-5)
    assert asked == ["a photo of a man", "a photo of a woman"]
