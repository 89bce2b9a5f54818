"""`data dedup`: planted copies and what held-out data holds get weight 0, and nothing else does."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_data_stats import photo, write
from torch import Tensor

from opensiglip.apps import weights as app
from opensiglip.apps.cli import main
from opensiglip.data.sources.registry import open_source
from opensiglip.data.weighting import dedup
from opensiglip.data.weighting.dedup import alike, cluster, keep
from opensiglip.data.weighting.file import read_weights


def left_out(spec: str, out: Path, *flags: str) -> set[str]:
    """The names of train's rows that get weight 0; all others get 1."""
    assert main(["data", "dedup", spec, "--out", str(out), "--workers", "0", *flags]) == 0
    source = open_source(spec)
    weights = read_weights(out, source)
    assert set(weights) <= {0.0, 1.0}
    return {source.example(row).name for row in np.flatnonzero(weights == 0)}


def test_copies_are_left_out_but_for_the_first_and_so_is_what_is_held_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, out = write(tmp_path / "data"), tmp_path / "w.parquet"
    copies = {"copy0.png", "copy1.jpg", "copy2.png", "copy3.jpg"}
    assert left_out(spec, out) == copies
    assert left_out(spec, out, "--against", spec) == copies | {"copy4.png"}
    said = capsys.readouterr().out
    assert "4 of 36 rows repeat an earlier one" in said and "1 occur in held-out data" in said
    assert "(copy4.png) is held out as held-out val 0 (4.png)" in said
    told = json.loads(out.with_suffix(".json").read_text())
    assert (told["repeats"], told["held_out_too"], told["left"]) == (4, 1, 31)
    assert told["broken"] == {"image can't be decoded": 1}, "what can't be read keeps its weight"


def test_all_splits_of_other_held_out_data_count(tmp_path: Path) -> None:
    spec, other = write(tmp_path / "data"), tmp_path / "other"
    other.mkdir()
    for number, name in ((7, "a.png"), (500, "b.png")):
        photo(number).save(other / name)
    rows = [{"file_name": name, "captions": ["x"], "split": "train"} for name in ("a.png", "b.png")]
    (other / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert "7.png" in left_out(spec, tmp_path / "w.parquet", "--against", str(other))


class Means:
    """A model whose embedding is an image's mean colour, about a grey."""

    def framed(self, images: list[Tensor]) -> list[Tensor]:
        return images

    def embed_framed(self, framed: list[Tensor]) -> Tensor:
        means = torch.stack([image.float().mean((1, 2)) - 128 for image in framed])
        return torch.nn.functional.normalize(means, dim=-1)


def test_a_model_finds_what_a_hash_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mirrored images, which dHash takes for others, have the same mean."""
    root = tmp_path / "data"
    root.mkdir()
    lines: list[dict[str, Any]] = []
    for number in range(4):
        for name, picture in ((f"{number}.png", photo(number)), (f"m{number}.png", photo(number).transpose(0))):
            picture.save(root / name)
            lines.append({"file_name": name, "captions": [name], "split": "train" if number else "val"})
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    monkeypatch.setattr(app, "load", lambda model: Means())
    flags = ("--model", "any", "--cosine", "0.9999")
    assert left_out(str(root), tmp_path / "w.parquet") == set()
    assert left_out(str(root), tmp_path / "w.parquet", *flags) == {"m1.png", "m2.png", "m3.png"}


def test_embeddings_are_compared_in_blocks_as_they_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(60, 3, generator=generator), dim=-1)
    near = (embeddings @ embeddings.T >= 0.97).numpy()
    reach = np.linalg.matrix_power(near.astype(np.int64), 8) > 0
    for _ in range(6):
        reach = (reach.astype(np.int64) @ reach) > 0
    monkeypatch.setattr(dedup, "BLOCK", 7)
    labels = alike(embeddings, 0.97).labels
    assert labels.tolist() == reach.argmax(1).tolist() and 5 < len(np.unique(labels)) < 50


def test_rows_known_to_show_one_image_stay_together_and_held_out_ones_weigh_on_all_of_a_cluster() -> None:
    groups = {0: "a", 1: "a", 2: "b", 3: "c", 4: "d"}
    labels = np.array([0, 0, 0, 3, 4, 3])  # the last is held out, as the row before the last but one
    kept = keep(5, np.arange(6), labels, groups.__getitem__)
    assert kept.weights.tolist() == [1, 1, 0, 0, 1]
    assert kept.repeats == [(2, 0)] and kept.leaks == [(3, 5)]
    found = cluster(4, dedup.Clusters(np.array([0, 0, 2, 3])), dedup.Clusters(np.array([0, 1, 1, 3])))
    assert found.tolist() == [0, 0, 0, 3]


def test_flags_that_say_nothing_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = write(tmp_path / "data")
    words = ["data", "dedup", spec, "--out", str(tmp_path / "w.parquet"), "--workers", "0"]
    assert main([*words, "--cosine", "1.5"]) == 2 and "--cosine 1.5 is out of range" in capsys.readouterr().err
    assert main([*words, "--against", str(tmp_path / "none")]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err
    small, again = tmp_path / "small", tmp_path / "again"
    for folder in (small, again):
        folder.mkdir()
        photo(7).save(folder / "a.png")
        (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "captions": ["x"], "split": "train"}))
    words = ["data", "dedup", str(small), "--out", str(tmp_path / "w.parquet"), "--workers", "0"]
    assert main([*words, "--against", str(again)]) == 2
    assert f"every example of {small} is held out by --against {again}" in capsys.readouterr().err
    assert not (tmp_path / "w.parquet").exists()
