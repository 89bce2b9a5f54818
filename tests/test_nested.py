"""Embeddings that may be cut: what training adds for it, and everything that cuts them."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import SHAPE, Small, collate, draw, exact
from fastapi.testclient import TestClient
from PIL import Image

from opensiglip.apps.cli import main
from opensiglip.apps.serve.app import Limits, Server
from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.data.fields.field import Visit
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.inference.index_folder import IndexFolder
from opensiglip.inference.predictor import Predictor, load
from opensiglip.models.model import Model
from opensiglip.models.sizes import SHAPES, Architecture
from opensiglip.objectives.base import Encoded
from opensiglip.training.learner import Learner
from opensiglip.training.run import train

WIDTHS = (8, 16)  # of 32
NAMES = ["siglip", "clip", "siglip2", "siglip2_naflex", "align"]
TEXTS = ["a red fox", "an apple"]


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_and_gradient_are_the_sum_over_widths(
    name: str, small: Small, uneven: list[Visit], pipeline: TextPipeline
) -> None:
    """Each width by the comparison that a recipe without nested widths has, of features cut by hand."""
    batch = None
    found = []
    for nested in (WIDTHS, ()):
        recipe = small(name, nested=nested)
        torch.manual_seed(0)
        learner = Learner.new(recipe, pipeline).double()
        learner.train(False)
        batch = batch or exact(collate(recipe, draw(recipe, uneven, pipeline), pipeline))
        term = learner.pairwise()[0]
        rows, shared = term.features(Encoded(learner.model, batch))
        total = term.compare(rows, shared)
        for width in WIDTHS if not nested else ():
            (views, text), others = rows[:2], rows[2:]
            cut = [F.normalize(x[..., :width], dim=-1) for x in (views, text)]
            total = total + term.compare([*cut, *others], shared)
        weights = [p for p in learner.model.parameters() if p.requires_grad]
        grads = torch.autograd.grad(total, weights, allow_unused=True)
        found.append((total.item(), [grad for grad in grads if grad is not None]))
    (ours, our_grads), (plain, plain_grads) = found
    assert ours == pytest.approx(plain, abs=1e-10) and ours > 1
    gaps = [float((x - y).abs().max()) for x, y in zip(our_grads, plain_grads, strict=True)]
    assert max(gaps) < 1e-10


def test_widths_that_are_no_part_of_an_embedding_are_refused(small: Small) -> None:
    with pytest.raises(UserError, match="--nested 32 is not less than the embedding's width, 32; give a smaller width"):
        small("siglip", nested=(8, 32))
    networks = small("siglip", nested=WIDTHS).architecture
    assert Architecture.from_json(networks.to_json() | {"nested": list(WIDTHS)}) == networks
    older = {key: value for key, value in networks.to_json().items() if key != "nested"}
    assert Architecture.from_json(older).nested == ()


@pytest.fixture(scope="module")
def predictor(small: Small, pipeline: TextPipeline) -> Predictor:
    torch.manual_seed(0)
    model = Model.new(small("siglip", nested=WIDTHS).architecture, len(pipeline)).eval()
    return Predictor(Pretrained.of(model, pipeline, name="tiny"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for place, colour in enumerate(("red", "green", "blue", "white", "black")):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.new("RGB", (24, 32), colour).save(tmp_path / "photos" / f"{place}.png")
    return tmp_path / "photos"


def test_embeddings_of_a_width_are_the_first_numbers_normalised_again(predictor: Predictor, photos: Path) -> None:
    images = sorted(photos.iterdir())
    for embed, given in ((predictor.embed_images, images), (predictor.embed_texts, TEXTS)):
        whole = embed(given)
        for width in WIDTHS:
            expected = whole[:, :width] / whole[:, :width].norm(dim=-1, keepdim=True)
            torch.testing.assert_close(embed(given, dim=width), expected, rtol=0, atol=1e-7)
        assert torch.equal(embed(given, dim=32), whole)
    with pytest.raises(UserError, match="embeddings of tiny have 32 numbers, not 9; give one of 8, 16"):
        predictor.embed_texts(TEXTS, dim=9)
    plain = Predictor(Pretrained.of(predictor.pretrained.model, predictor.pipeline, name="plain")).with_parts(
        architecture=None
    )
    with pytest.raises(UserError, match="have 32 numbers, not 8; train with --nested to have others"):
        plain.embed_texts(TEXTS, dim=8)


def test_an_index_of_a_width_finds_what_cut_embeddings_find(predictor: Predictor, photos: Path, tmp_path: Path) -> None:
    index = IndexFolder.build(predictor, photos, tmp_path / "index", dim=8)
    assert index.dim == 8
    cosines = predictor.embed_images(index.files, dim=8) @ predictor.embed_texts("a fox", dim=8)[0]
    hits = predictor.search(index, "a fox", count=5)
    assert [hit.path for hit in hits] == [index.files[at] for at in cosines.argsort(descending=True).tolist()]
    assert [hit.score for hit in hits] == pytest.approx(cosines.sort(descending=True).values.tolist(), abs=1e-5)
    with pytest.raises(UserError, match="index holds vectors of 8 numbers, and these have 32; name another"):
        IndexFolder.build(predictor, photos, tmp_path / "index")


def test_openais_dimensions_are_the_models_widths(predictor: Predictor) -> None:
    server = Server(predictor, Limits(wait=0))
    with TestClient(server.app, base_url="http://127.0.0.1") as client:
        asked = {"input": TEXTS, "dimensions": 16}
        rows = client.post("/v1/embeddings", json=asked).json()["data"]
        wrong = client.post("/v1/embeddings", json=asked | {"dimensions": 12})
    found = torch.tensor([row["embedding"] for row in rows])
    torch.testing.assert_close(found, predictor.embed_texts(TEXTS, dim=16), rtol=0, atol=1e-6)
    assert wrong.status_code == 400 and "have 32 numbers, not 12; give one of 8, 16" in wrong.text


def test_a_run_is_judged_at_each_width_and_its_card_names_them(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SHAPES, "tiny", SHAPE)
    settings: dict[str, Any] = {"size": "tiny", "resolution": 32, "batch_size": 8, "workers": 0, "steps": 2}
    settings |= {"precision": "fp32", "memory_check": False, "vocabulary": 300, "held_out": 6, "data": folder}
    train("siglip", out=tmp_path / "run", nested=WIDTHS, **settings)
    assert load(str(tmp_path / "run")).nested == WIDTHS
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "may be cut to their first 8 or 16 numbers" in card
    words = [str(tmp_path / "run"), "--data", folder, "--tasks", "retrieval", "--out", str(tmp_path / "judged")]
    assert main(["eval", *words]) == 0
    found = (tmp_path / "judged" / "evaluation.json").read_text()
    for width in WIDTHS:
        assert f'"image_to_text_at_{width}_r10"' in found and f'"text_to_image_at_{width}_r1"' in found
    assert main(["search-index", str(tmp_path / "run"), folder, "--out", str(tmp_path / "index"), "--dim", "8"]) == 0
    assert IndexFolder.open(tmp_path / "index").dim == 8
