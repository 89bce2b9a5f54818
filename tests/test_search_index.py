"""An index on disk finds what the model finds, goes on after a stop, and embeds only what is new."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from opensiglip.apps import search
from opensiglip.apps.cli import main
from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.inference import index_folder
from opensiglip.inference.index_folder import IndexFolder, write_vectors
from opensiglip.inference.index_rows import File, write_rows
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
        if str(words).startswith("7 of 10 embedded, 1 can't be read"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        IndexFolder.build(predictor, photos, tmp_path / "index", cut)
    with pytest.raises(UserError, match="is incomplete; run its"):
        IndexFolder.open(tmp_path / "index")
    embedded.clear()
    index = IndexFolder.build(predictor, photos, tmp_path / "index", said.append)
    assert sum(embedded[1:]) <= 2 and "10 images, 8 of them done before" in said
    assert len(index.files) == 9 and list((tmp_path / "index").glob("part-*")) == []
    assert predictor.search(index, image=photos / "8.png")[0].path == photos / "8.png"


def test_a_build_that_is_cut_short_twice_keeps_the_parts_of_both(
    predictor: Predictor, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_folder, "PART", 4)
    said: list[str] = []

    def cut_after(done: str) -> Callable[[object], None]:
        def cut(words: object) -> None:
            said.append(str(words))
            if done in said[-1]:
                raise KeyboardInterrupt

        return cut

    for done in ("of 10 embedded", "of 6 embedded"):
        with pytest.raises(KeyboardInterrupt):
            IndexFolder.build(predictor, photos, tmp_path / "index", cut_after(done))
    IndexFolder.build(predictor, photos, tmp_path / "index", said.append)
    assert "10 images, 8 of them done before" in said


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
    with pytest.raises(UserError, match="is not an index; make one with"):
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
    assert index_folder.library().downcast_index(graph).hnsw.efSearch == index_folder.WALK
    found = graph.search(vectors[:50], 8)[1]
    exact = np.argsort(-(vectors[:50] @ vectors.T), axis=1)[:, :8]
    overlap = [len(set(one) & set(other)) for one, other in zip(found.tolist(), exact.tolist(), strict=True)]
    assert sum(overlap) > 0.95 * 8 * 50


def test_the_commands_build_and_search(predictor: Predictor, photos: Path, tmp_path: Path, capsys: Any) -> None:
    predictor.pretrained.save(tmp_path / "model")
    index = str(tmp_path / "index")
    assert main(["search-index", str(tmp_path / "model"), str(photos), "--out", index]) == 0
    said = capsys.readouterr().out
    assert "9 of 10 embedded, 1 can't be read" in said and "9 images in" in said
    assert "1 can't be read: broken.jpg; " in said
    assert main(["search", index, "a", "fox", "--count", "2", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = predictor.search(index, "a fox", count=2)
    assert [row["image"] for row in rows] == [str(hit.path) for hit in expected]
    assert main(["search", index, "a fox", "--count", "20"]) == 0
    text = capsys.readouterr()
    assert text.out.splitlines()[0] == "  cosine  image" and len(text.out.splitlines()) == 10
    assert text.err == f"opensiglip: {index} has only 9 images, of --count 20.\n"
    assert main(["search", index]) == 2
    assert "give a text to look for, or --image FILE." in capsys.readouterr().err


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    """A byte among the pages."""
    content = bytearray(path.read_bytes())
    content[60] ^= 255
    path.write_bytes(content)


def other_columns(path: Path) -> None:
    pq.write_table(pa.table({"path": ["0.png"]}), path)


def other_width(path: Path) -> None:
    write_rows(path, {File("0.png", 1, 1): np.ones(7, np.float32)}, 7)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "cut": cut,
    "empty": empty,
    "flipped": flip,
    "missing": Path.unlink,
    "other columns": other_columns,
    "other width": other_width,
}
PROBES = ("1", "{}", "null", "[1.0, null]", '["1"]', "[[1.0]]", "[NaN]")
ABOUTS = ["", "{", "[]", "1", "null", '{"folder": 1, "model": "m", "probe": []}']
ABOUTS += ['{"folder": "f", "model": "m"' + probe + "}" for probe in ("", *(f', "probe": {x}' for x in PROBES))]


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """To load a model fails the test."""

    def loaded(spec: str) -> Predictor:
        raise AssertionError(f"{spec} was loaded")

    monkeypatch.setattr(search, "load", loaded)


def refused(words: list[str], capsys: Any) -> str:
    """The one sentence of a command that ends with 2."""
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and said.err.startswith("opensiglip: ")
    return said.err


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_rows_are_one_sentence_of_search_and_embedded_again_by_search_index(
    predictor: Predictor, photos: Path, tmp_path: Path, capsys: Any, embedded: list[int], damage: str
) -> None:
    place = tmp_path / "index"
    IndexFolder.build(predictor, photos, place)
    DAMAGE[damage](place / "embeddings.parquet")
    said = refused(["search", str(place), "a fox"], capsys)
    assert f"{place / 'embeddings.parquet'} is missing or damaged; run its `opensiglip search-index` again." in said
    lines: list[str] = []
    embedded.clear()
    IndexFolder.build(predictor, photos, place, lines.append)
    assert lines[0] == f"{place / 'embeddings.parquet'} can't be read; its images are embedded again"
    assert sum(embedded) == 10 and len(IndexFolder.open(place).nearest(torch.ones(32), 20)) == 9, "the probe, and nine"


@pytest.mark.usefixtures("no_model")
def test_damaged_vectors_are_one_sentence_of_search_and_made_again_by_search_index(
    predictor: Predictor, photos: Path, tmp_path: Path, capsys: Any, embedded: list[int]
) -> None:
    place = tmp_path / "index"
    IndexFolder.build(predictor, photos, place)
    for damage in (cut, empty):
        damage(place / "vectors.faiss")
        said = refused(["search", str(place), "a fox"], capsys)
        assert f"{place / 'vectors.faiss'} can't be read; run its `opensiglip search-index` again." in said
        embedded.clear()
        assert len(IndexFolder.build(predictor, photos, place).nearest(torch.ones(32), 20)) == 9
        assert embedded == [1], "the probe alone"


@pytest.mark.parametrize("damage", [cut, empty, other_columns])
def test_of_damaged_parts_only_their_own_images_are_embedded_again(
    predictor: Predictor,
    photos: Path,
    tmp_path: Path,
    embedded: list[int],
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], None],
) -> None:
    monkeypatch.setattr(index_folder, "PART", 4)
    place, lines = tmp_path / "index", list[str]()
    monkeypatch.setattr(index_folder, "write_vectors", lambda path, vectors: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        IndexFolder.build(predictor, photos, place)
    monkeypatch.undo()
    (place / "embeddings.parquet").unlink()
    damage(place / "part-000001.parquet")
    (place / "part-junk.parquet").write_bytes(b"no parquet")
    embedded.clear()
    index = IndexFolder.build(predictor, photos, place, lines.append)
    assert [line.split(" ")[0] for line in lines[:2]] == [
        str(place / f"part-{name}.parquet") for name in ("000001", "junk")
    ]
    assert lines[2] == "10 images, 6 of them done before"
    assert len(index.files) == 9 and list(place.glob("part-*")) == []


@pytest.mark.usefixtures("no_model")
def test_a_damaged_index_json_is_one_sentence_of_both_commands(
    predictor: Predictor, photos: Path, tmp_path: Path, capsys: Any
) -> None:
    place = tmp_path / "index"
    build = ["search-index", "model", str(photos), "--out", str(place)]
    IndexFolder.build(predictor, photos, place)
    for about in ABOUTS:
        (place / "index.json").write_text(about)
        for words in (["search", str(place), "a fox"], build):
            said = refused(words, capsys)
            assert (
                f"{place / 'index.json'} is damaged, or does not belong to an index: delete {place} and run its" in said
            ), about
    (place / "index.json").unlink()
    assert f"{place} is not an index; make one with" in refused(["search", str(place), "a fox"], capsys)
    assert "holds embeddings.parquet but no index.json; if it was an index, delete it, else" in refused(build, capsys)


@pytest.mark.usefixtures("no_model")
def test_what_cannot_be_written_or_is_not_there_is_refused_before_the_model_is_loaded(
    photos: Path, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "file").write_text("")
    outs = [tmp_path / "file", tmp_path / "file" / "below" / "it", tmp_path / ("n" * 300), Path("/proc/x")]
    for out in outs[: None if Path("/proc/self").exists() else -1]:
        said = refused(["search-index", "model", str(photos), "--out", str(out)], capsys)
        assert f"--out {out} can't be written to (" in said and said.endswith("); name another folder.\n")
    (tmp_path / "none").mkdir()
    for folder, words in (("none", "no image below"), ("nowhere", "there is no folder")):
        assert words in refused(
            ["search-index", "model", str(tmp_path / folder), "--out", str(tmp_path / "new" / "x")], capsys
        )
    assert not (tmp_path / "new").exists()


def test_an_empty_text_and_a_model_that_is_gone_are_one_sentence(
    predictor: Predictor, photos: Path, tmp_path: Path, capsys: Any
) -> None:
    place = tmp_path / "index"
    IndexFolder.build(predictor, photos, place)
    about = json.loads((place / "index.json").read_text()) | {"model": str(tmp_path / "gone")}
    (place / "index.json").write_text(json.dumps(about))
    for text in ("", "  \n"):
        said = refused(["search", str(place), text], capsys)
        assert "the text is empty; say what to look for, or give --image FILE." in said
    said = refused(["search", str(place), "a fox"], capsys)
    assert "gone: there is no such folder or file" in said
    assert f"; {place} was made with it: give --model, where it is now." in said


def test_a_file_of_another_time_is_embedded_again_and_linked_folders_are_left_out(
    predictor: Predictor, photos: Path, tmp_path: Path, embedded: list[int]
) -> None:
    (photos / "loop").symlink_to(photos)
    assert len(IndexFolder.build(predictor, photos, tmp_path / "index").files) == 9
    os.utime(photos / "2.png", ns=(1, 1))
    embedded.clear()
    IndexFolder.build(predictor, photos, tmp_path / "index")
    assert embedded == [1, 1], "the probe, then the file"


def test_vectors_and_rows_of_two_builds_are_not_searched(
    predictor: Predictor, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    IndexFolder.build(predictor, photos, tmp_path / "index")
    write_vectors(tmp_path / "index" / index_folder.VECTORS, np.eye(2, 32, dtype=np.float32))
    with pytest.raises(UserError, match="holds parts of two builds"):
        IndexFolder.open(tmp_path / "index").nearest(torch.ones(32), 1)

    def stop(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(index_folder, "write_vectors", stop)
    with pytest.raises(KeyboardInterrupt):
        IndexFolder.build(predictor, photos, tmp_path / "index")
    with pytest.raises(UserError, match="is incomplete"):
        IndexFolder.open(tmp_path / "index")
