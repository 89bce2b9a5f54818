"""mteb and CLIP_benchmark judge a trained model through the classes that ship, by what the model itself answers."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from opensiglip.bridge import clip_benchmark as ours
from opensiglip.bridge.mteb import MTEBModel, digest
from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.inference.predictor import Predictor
from opensiglip.models.model import Model

pytestmark = pytest.mark.filterwarnings("ignore")  # of the two libraries
COLOURS = ("red", "lime", "blue", "white")


@pytest.fixture(scope="module")
def folder(small: Any, pipeline: TextPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SigLIP of random weights, saved as a run has it."""
    torch.manual_seed(0)
    model = Model.new(small("siglip").architecture, len(pipeline)).eval()
    place = tmp_path_factory.mktemp("runs") / "mine" / "model"
    Pretrained.of(model, pipeline, name="mine").save(place)
    return place


def pictures() -> list[Image.Image]:
    return [Image.new("RGB", (40 + 8 * n, 48), colour) for n, colour in enumerate(COLOURS)]


def task(monkeypatch: pytest.MonkeyPatch, name: str, labels: list[int]) -> Any:
    """mteb's toy task of zero-shot classification, with our pictures."""
    from datasets import Dataset, DatasetDict, Features, Value
    from datasets import Image as Column
    from mteb.mocks import mock_tasks

    one = getattr(mock_tasks, name)()
    rows = {"image": pictures(), "label": labels}
    features = Features({"image": Column(), "label": Value("int64")})
    one.dataset, one.data_loaded = DatasetDict({"test": Dataset.from_dict(rows, features=features)}), True
    monkeypatch.setattr(one, "load_data", lambda **_: None)
    monkeypatch.setattr(one, "get_candidate_labels", lambda: [f"a {colour} wall" for colour in COLOURS])
    return one


def test_mteb_judges_by_what_the_model_answers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mteb = pytest.importorskip("mteb")
    model = MTEBModel(folder, device="cpu")
    predictor = Predictor(Pretrained.open(folder), device="cpu")
    cosines = predictor.embed_images(pictures()) @ predictor.embed_texts([f"a {colour} wall" for colour in COLOURS]).T
    answers = cosines.argmax(1).tolist()
    for labels, accuracy in ((answers, 1.0), ([(label + 1) % 4 for label in answers], 0.0)):
        zero_shot = task(monkeypatch, "MockZeroShotClassificationTask", labels)
        found = mteb.evaluate(model, zero_shot, cache=None, show_progress_bar=False)
        assert found.task_results[0].scores["test"][0]["accuracy"] == accuracy
    assert (found.model_name, found.model_revision) == ("opensiglip/mine", digest(predictor.pretrained.model))


@pytest.mark.parametrize(
    "name",
    ["MockAny2AnyRetrievalI2TTask", "MockImageTextPairClassificationTask", "MockImageClassificationTask"],
)
def test_mteb_s_toy_tasks_run(name: str, folder: Path) -> None:
    mteb = pytest.importorskip("mteb")
    from mteb.mocks import mock_tasks

    toy = getattr(mock_tasks, name)()
    found = mteb.evaluate(MTEBModel(folder, device="cpu"), toy, cache=None, show_progress_bar=False)
    score = found.task_results[0].scores[toy.metadata.eval_splits[0]][0]["main_score"]
    assert 0 <= score <= 1


def test_image_and_text_at_once_are_their_sum_and_cosines_are_of_unit_vectors(folder: Path) -> None:
    model = MTEBModel(folder, device="cpu")
    about, images, texts = SimpleNamespace(name="toy"), pictures(), list(COLOURS)
    image = model.encode([{"image": images[:3]}, {"image": images[3:]}], task_metadata=about)
    text = model.encode([{"text": texts}], task_metadata=about)
    both = model.encode([{"image": images, "text": texts}], task_metadata=about)
    expected = F.normalize(torch.from_numpy(image + text), dim=-1)
    assert torch.allclose(torch.from_numpy(both), expected, atol=1e-6)
    assert torch.allclose(model.similarity(3 * image, text), torch.from_numpy(image @ text.T), atol=1e-6)
    assert torch.allclose(
        model.similarity_pairwise(image, 2 * text), torch.from_numpy((image * text).sum(1)), atol=1e-6
    )
    with pytest.raises(UserError, match="task toy has audio, which is neither image nor text; leave it out."):
        model.encode([{"audio": [1]}], task_metadata=about)


def test_other_weights_are_another_revision(folder: Path) -> None:
    model = Pretrained.open(folder).model
    before = digest(model)
    assert digest(Pretrained.open(folder).model) == before
    with torch.no_grad():
        model.logit_scale += 1e-3
    assert digest(model) != before


def test_clip_benchmarks_command_ends_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "clip_benchmark", None)
    with pytest.raises(SystemExit) as ended:
        ours.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "this needs clip_benchmark; `pip install clip-benchmark`.\n"


def test_clip_benchmark_judges_by_what_the_model_answers(folder: Path) -> None:
    pytest.importorskip("clip_benchmark")
    from clip_benchmark import cli
    from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
    from clip_benchmark.models import load_clip

    ours.register()
    ours.register()
    assert cli.MODEL_TYPES.count("opensiglip") == 1
    model, transform, tokenizer = load_clip("opensiglip", str(folder), "own", "", "cpu")
    predictor = Predictor(Pretrained.open(folder), device="cpu")
    texts = [f"a {colour} wall" for colour in COLOURS]
    cosines = predictor.embed_images(pictures()) @ predictor.embed_texts(texts).T
    classifier = zeroshot_classification.zero_shot_classifier(model, tokenizer, COLOURS, ["a {c} wall"], "cpu")
    rows = [(transform(picture), label) for label, picture in enumerate(pictures())]
    loader = torch.utils.data.DataLoader(rows, batch_size=3)
    logits, labels = zeroshot_classification.run_classification(model, classifier, loader, "cpu")
    assert torch.allclose(logits, 100 * cosines, atol=0.5), "in CLIP_benchmark's bfloat16"
    assert labels.tolist() == [0, 1, 2, 3]
    pairs = [([transform(picture)], [text]) for picture, text in zip(pictures(), texts, strict=True)]
    batches = [(torch.stack([image for images, _ in pairs for image in images]), [text for _, text in pairs])]
    found = zeroshot_retrieval.evaluate(model, batches, tokenizer, "cpu", recall_k_list=[1])
    right = torch.arange(len(texts))
    assert found["text_retrieval_recall@1"] == pytest.approx((cosines.argmax(1) == right).float().mean())
    assert found["image_retrieval_recall@1"] == pytest.approx((cosines.argmax(0) == right).float().mean())
