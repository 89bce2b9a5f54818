"""The study of balanced examples: the bias that it plants, what it weighs, and how it judges; without training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opensiglip.data.sources.registry import open_source
from opensiglip.data.weighting.file import read_weights
from studies import balance


def test_the_planted_bias_is_weighed_away_and_runs_are_judged_in_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("scipy.optimize")
    monkeypatch.setattr(balance, "ROWS", 60)
    monkeypatch.setattr(balance, "HELD_OUT", 4)
    trained: list[tuple[str, int, bool]] = []

    def train(recipe: str, **flags: Any) -> None:
        trained.append((flags["out"].name, flags["seed"], "example_weights" in flags))

    def evaluate(run: Path, data: str, *_: Any, **__: Any) -> dict[str, Any]:
        captions = [open_source(data, split="val").example(row).captions[0].text for row in range(16)[: rows(data)]]
        of_men = [float("engineer" in text or "pilot" in text) for text in captions]
        scores = of_men if run.name == "uniform" else [0.5] * len(of_men)
        return {"values": {"fairness": {"nearer_to_man": {"scores": scores}}}}

    def rows(data: str) -> int:
        return len(open_source(data, split="val"))

    monkeypatch.setattr(balance, "train", train)
    monkeypatch.setattr(balance, "evaluate", evaluate)
    balance.main(tmp_path, 2)
    assert trained == [(name, seed, name == "balanced") for seed in (0, 1) for name in ("uniform", "balanced")]
    said = capsys.readouterr().out
    assert "uniform             +1.000 [+1.000, +1.000]" in said, "each job is nearer to the gender it mostly has"
    assert "difference, paired  -0.500 [-0.500, -0.500]" in said
    source = open_source(str(tmp_path / "people"))
    weights = read_weights(tmp_path / "weights.parquet", source)
    texts = [source.example(row).captions[0].text for row in range(len(source))]
    for job, share in balance.MEN.items():
        of = np.array([text.endswith(job) if job else "who" not in text for text in texts])
        men = np.array(["a man" in text for text in texts])
        assert of.sum() == 60 and abs((of & men).sum() / 60 - share) < 0.15
        assert abs(weights[of & men].sum() / weights[of].sum() - 0.5) < 0.05, job  # "" is no target
