"""An index on disk finds what the model finds, goes on after a stop, and embeds only what is new."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from opensiglip.apps.cli import main
from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.inference import index_folder
from opensiglip.inference.index_folder import IndexFolder, write_vectors
from opensiglip.inference.predictor import Predictor
from opensiglip.models.model import Model


def model_of(small: Any, pipeline: TextPipeline, seed: int) -> Predictor:
    torch.manual_seed(seed)
    model = Model.new(small("siglip").architecture, len(pipeline)).eval()
    return Predictor(Pretrained.of(model, pipeline, name="tiny"))


@pytest.fixture(scope="module")
def predictor(small: Any, pipeline: TextPipeline) -> Predictor:
    return model_of(small, pipeline, 0)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Nine images in two folders, a broken one, and a text."""
    for place in range(9):
        paint(tmp_path / "photos" / ("more" if place % 2 else "") / f"{place}.png", place)
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"\xff\xd8 no")
    (tmp_path / "photos" / "note.txt").write_text("no image")
    return tmp_path / "photos"


def paint(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call embedded, the probe aside."""
    calls: list[int] = []
    plain = Predictor.embed_framed

    def counted(self: Predictor, framed: Sequence[Tensor]) -> Tensor:
        calls.append(len(framed))
        return plain(self, framed)

    monkeypatch.setattr(Predictor, "embed_framed", counted)
    return calls


def test_it_finds_what_the_model_finds_with_the_same_scores(predictor: Predictor, photos: Path, tmp_path: Path) -> None:
    index = IndexFolder.build(predictor, photos, tmp_path / "index")
    assert len(index.files) == 9 and [path.name for path in index.unreadable] == ["broken.jpg"]
    cosines = {path: float(predictor.embed_images(path)[0] @ predictor.embed_texts("a fox")[0]) for path in index.files}
    hits = predictor.search(tmp_path / "index", "a fox", count=4)
    assert [hit.path for hit in hits] == sorted(cosines, key=lambda path: -cosines[path])[:4]
    assert [hit.score for hit in hits] == pytest.approx([cosines[hit.path] for hit in hits], abs=1e-5)
    again = predictor.search(index, image=photos / "more" / "3.png")
    assert again[0].path == photos / "more" / "3.png" and again[0].score == pytest.approx(1, abs=1e-5)
    table = pq.read_table(tmp_path / "index" / "embeddings.parquet")
    assert table.num_rows == 10 and table["embedding"].null_count == 1
    assert "can't be decoded" in [reason for reason in table["reason"].to_pylist() if reason][0]


def test_built_again_it_embeds_what_is_new_or_changed_and_forgets_what_is_gone(
    predictor: Predictor, photos: Path, tmp_path: Path, embedded: list[int]
) -> None:
    IndexFolder.build(predictor, photos, tmp_path / "index")
    (photos / "0.png").unlink()
    paint(photos / "2.png", 99)
    paint(photos / "new" / "9.png", 9)
    embedded.clear()
    index = IndexFolder.build(predictor, photos, tmp_path / "index")
    assert embedded == [1, 2], "the probe, then a changed and a new image"
    assert photos / "0.png" not in index.files and len(index.files) == 9
    for name in ("2.png", "new/9.png"):
        assert predictor.search(index, image=photos / name)[0].path == photos / name


def test_a_build_that_was_cut_short_goes_on(
    predictor: Predictor, photos: Path, tmp_path: Path, embedded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_folder, "PART", 4)
    said: list[str] = []

    def cut(words: object) -> None:
        said.append(str(words))
        if str(words).startswith("8 of"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        IndexFolder.build(predictor, photos, tmp_path / "index", cut)
    with pytest.raises(UserError, match="is not built to its end; give its"):
        IndexFolder.open(tmp_path / "index")
    embedded.clear()
    index = IndexFolder.build(predictor, photos, tmp_path / "index", said.append)
    assert sum(embedded[1:]) <= 2 and "10 images, 8 of them embedded before" in said
    assert len(index.files) == 9 and list((tmp_path / "index").glob("part-*")) == []
    assert predictor.search(index, image=photos / "8.png")[0].path == photos / "8.png"


def test_an_index_of_another_model_or_folder_is_left_alone(
    predictor: Predictor, small: Any, pipeline: TextPipeline, photos: Path, tmp_path: Path
) -> None:
    IndexFolder.build(predictor, photos, tmp_path / "index")
    with pytest.raises(UserError, match="was made with another model, tiny; name another index"):
        IndexFolder.build(model_of(small, pipeline, 1), photos, tmp_path / "index")
    with pytest.raises(UserError, match="is the index of .*photos; name another for"):
        IndexFolder.build(predictor, photos / "more", tmp_path / "index")
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="no image below"):
        IndexFolder.build(predictor, tmp_path / "none", tmp_path / "other")
    with pytest.raises(UserError, match="is no index; make one with"):
        IndexFolder.open(tmp_path / "none")
    with pytest.raises(UserError, match="holds vectors of 32 numbers, and the model gives 7"):
        IndexFolder.open(tmp_path / "index").nearest(torch.ones(7), 1)


def test_many_vectors_become_a_graph_that_finds_nearly_all_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_folder, "EXACT", 100)
    vectors = np.random.default_rng(0).standard_normal((1000, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    write_vectors(tmp_path / "graph", vectors)
    graph = index_folder.library().read_index(str(tmp_path / "graph"))
    assert "HNSW" in type(index_folder.library().downcast_index(graph)).__name__
    found = graph.search(vectors[:50], 8)[1]
    exact = np.argsort(-(vectors[:50] @ vectors.T), axis=1)[:, :8]
    overlap = [len(set(one) & set(other)) for one, other in zip(found.tolist(), exact.tolist(), strict=True)]
    assert sum(overlap) > 0.95 * 8 * 50


def test_the_commands_build_and_search(predictor: Predictor, photos: Path, tmp_path: Path, capsys: Any) -> None:
    predictor.pretrained.save(tmp_path / "model")
    index = str(tmp_path / "index")
    assert main(["search-index", str(tmp_path / "model"), str(photos), "--out", index]) == 0
    assert "9 images in" in capsys.readouterr().out
    assert main(["search", index, "a", "fox", "--count", "2", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = predictor.search(index, "a fox", count=2)
    assert [row["image"] for row in rows] == [str(hit.path) for hit in expected]
    assert main(["search", index]) == 2
    assert "give a text to look for, or --image FILE." in capsys.readouterr().err
