"""NaFlex models and checkpoints are read, judged and exported at their images' own aspect ratio."""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import peers
import pytest
import torch
import torch.nn.functional as F
from oracle import Oracle
from PIL import Image
from torch import Tensor
from toys import SHAPE
from transformers import AutoModel, AutoProcessor, Siglip2ImageProcessor, Siglip2VisionModel

import opensiglip
from opensiglip.apps.cli import main
from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.data.boxes import BoxFormat
from opensiglip.data.example import Caption, Example, Region, Source
from opensiglip.data.fields.naflex import NaFlex
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.evaluation.benchmark import Context
from opensiglip.evaluation.benchmarks.captioning import captioning
from opensiglip.evaluation.benchmarks.compositionality import compositionality
from opensiglip.evaluation.benchmarks.grounded_captioning import grounded_captioning
from opensiglip.evaluation.benchmarks.grounding import constant_boxes, grounding
from opensiglip.evaluation.benchmarks.open_vocabulary import open_vocabulary
from opensiglip.evaluation.benchmarks.probes import probes
from opensiglip.evaluation.benchmarks.retrieval import retrieval
from opensiglip.evaluation.benchmarks.zero_shot import zero_shot
from opensiglip.evaluation.encode import EncodedExamples, encode_examples
from opensiglip.inference.encoder import pooled_features
from opensiglip.inference.predictor import Predictor
from opensiglip.models.model import Model
from opensiglip.models.sizes import Architecture
from opensiglip.reports.held_out_samples import answered
from opensiglip.reports.patch_colours import patch_maps
from opensiglip.training.run import train
from opensiglip.types import Features, Patches

PATCH, BUDGET = 8, 16
INKS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
CLOSE = 1e-5
SIZES = ((480, 640), (640, 427), (300, 900), (720, 240), (333, 333))  # height and width, as photographs come


class Tiles(Source):
    """A coloured tile on wide, tall and square black pictures, in the left or upper part."""

    name, languages = "tiles", ("en",)
    sizes = ((16, 64), (64, 16), (32, 32), (24, 40))

    def __len__(self) -> int:
        return 12

    def example(self, index: int, language: str | None = None) -> Example:
        height, width = self.sizes[index % 4]
        colour = list(INKS)[index // 4]
        image = torch.zeros(3, height, width, dtype=torch.uint8)
        image[:, :16, :8] = torch.tensor(INKS[colour], dtype=torch.uint8)[:, None, None]
        polygon = [0, 0, 7, 0, 7, 15, 0, 15]
        told = {"label": colour, "masks": [{"label": colour, "polygons": [polygon]}]}
        told["negative_caption"] = f"a {list(INKS)[index // 4 - 1]} tile"
        captions = (Caption(f"a {colour} tile"),)
        region = Region((0.0, 0.0, 8.0, 16.0), {"en": f"the {colour} one"})
        return Example(image, captions, (region,), f"tiles/{index}", extras=told)

    def texts(self) -> Iterator[str]:
        return (text for colour in INKS for text in (f"a {colour} tile", f"the {colour} one"))

    def describe(self) -> dict[str, Any]:
        return {"kind": "tiles"}


def oracle() -> Oracle:
    """A model that sees the mean colour of each patch and reads colour words."""

    def see(image: Patches) -> Features:
        tokens = (image.values + 1).unflatten(-1, (-1, 3)).mean(-2)
        tokens = torch.where(image.valid[..., None], tokens, 9.0)  # what a task reads of padding is wrong
        return Features(tokens.masked_fill(~image.valid[..., None], 0).sum(1), tokens, image.valid)

    def texts(words: Any) -> Tensor:
        return torch.tensor([[float(colour in text) for colour in INKS] for text in words]) + 1e-3

    frame, device = NaFlex(PATCH, 18, (18,)), torch.device("cpu")
    return Oracle("oracle", frame, device, lambda: torch.autocast("cpu", enabled=False), see, texts, lambda x: x)


@cache
def trained() -> Predictor:
    """A random NaFlex model of ours, towers and decoder."""
    torch.manual_seed(0)
    pipeline = TextPipeline.train(Tiles().texts(), size=330, length=40)
    model = Model.new(Architecture(32, PATCH, 40, SHAPE, SHAPE, SHAPE, naflex=True), len(pipeline)).eval()
    for name, parameter in model.named_parameters():  # a decoder that hangs on what it sees
        std = 0.5 if name.startswith("decoder") else 0.1
        torch.nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=std)
    tasks = ("cap", "aref", "gcap")
    return Predictor(Pretrained.of(model, pipeline, name="it", boxes=BoxFormat(), tasks=tasks, languages=("en",)))


# Judging


def test_what_is_judged_is_what_each_image_gives_alone_without_padding() -> None:
    subject = trained()
    judged = encode_examples(subject, Tiles(), 12)
    assert judged.valid is not None and not judged.valid.all() and judged.pooled is not None
    assert {tuple(one.image.shape[1:]) for one in judged.examples} == {(16, 64), (64, 16), (32, 32), (24, 40)}
    for place, example in enumerate(judged.examples):
        count = example.image.shape[1] * example.image.shape[2] // PATCH**2
        alone = Predictor(replace(subject.pretrained, frame=NaFlex(PATCH, count, (count,)))).encode([example.image])
        assert alone.pooled is not None and alone.valid is not None and alone.valid.all()
        assert (alone.pooled[0] - judged.pooled[place]).abs().max() < CLOSE
        assert (alone.tokens[0] - judged.tokens[place, :count]).abs().max() < CLOSE


def test_a_model_that_sees_is_right_on_wide_and_on_tall_pictures() -> None:
    subject, source = oracle(), Tiles()
    judged, context = encode_examples(subject, source, 12), Context(training=source)
    assert zero_shot(subject, judged, context).metrics["accuracy"] == 1
    assert open_vocabulary(subject, judged, context).metrics["pointing"] == 1
    assert open_vocabulary(subject, judged, context).metrics["miou"] == 1
    found = probes(subject, judged, context).metrics
    assert found["image"]["knn"] == 1 and found["segmentation"]["miou"] > 0.6
    middle = open_vocabulary(subject, judged, context).metrics["pointing_middle"]
    assert middle == 0, "the tile is in a corner of each picture"


@pytest.mark.parametrize(
    "task",
    [grounding, grounded_captioning, captioning, zero_shot, compositionality, retrieval, open_vocabulary, probes],
)
def test_no_task_reads_padding(task: Any) -> None:
    subject, source = trained(), Tiles()
    judged = encode_examples(subject, source, 12)
    assert judged.valid is not None
    noise = 50 * torch.randn(judged.tokens.shape, generator=torch.Generator().manual_seed(1))
    other = replace(judged, tokens=torch.where(judged.valid[..., None], judged.tokens, noise))
    first, second = (task(subject, some, Context(training=source)) for some in (judged, other))
    assert json.dumps(first.metrics) == json.dumps(second.metrics)
    assert [one.predictions for one in first.samples] == [one.predictions for one in second.samples]


def test_boxes_are_read_and_written_by_the_sides_of_the_resized_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that writes the truth, as shares of the image, is right; by a square's sides it would not be."""
    subject = trained()
    assert subject.boxes is not None and subject.pipeline is not None
    judged = encode_examples(subject, Tiles(), 12)
    sizes = [(one.image.shape[2], one.image.shape[1]) for one in judged.examples]
    assert [judged.size(place) for place in range(12)] == sizes
    truths = [one.regions[0].bbox for one in judged.examples]
    written = [subject.boxes.write(box, *size) for box, size in zip(truths, sizes, strict=True)]
    pipeline = subject.pipeline

    def truth(
        decoder: Any,
        memory: Tensor,
        prefixes: Any,
        *rest: Any,
        owners: Any,
        valid: Tensor,
        each: int | None = None,
        **_: Any,
    ) -> list[Any]:
        shown = [torch.equal(memory[owner], judged.tokens[place]) for place, owner in enumerate(owners)]
        assert len(memory) == len(valid)
        answers = [pipeline.ids(text) for text in written]
        return [answer for answer in (answers if all(shown) else answers[::-1]) for _ in range(each or 1)]

    monkeypatch.setattr("opensiglip.inference.text_generator.generate", truth)
    found = grounding(subject, judged, Context(training=Tiles())).metrics
    assert found["accuracy"] == 1 and found["mean_iou"] > 0.97 > found["accuracy_shuffled_images"]
    shares = constant_boxes(Tiles(), subject.frame)[1:]
    expected = [(a / w, b / h, c / w, d / h) for (a, b, c, d), (w, h) in zip(truths, sizes, strict=True)]
    assert np.allclose(shares, expected)


def test_what_a_model_without_pooling_sees_is_the_mean_of_what_is_no_padding() -> None:
    tokens = torch.tensor([[[1.0], [3.0], [50.0]]])
    judged = EncodedExamples([], tokens, None, torch.tensor([[True, True, False]]))
    assert pooled_features(judged.features).tolist() == [[2.0]] and pooled_features(
        replace(judged, valid=None).features
    ).tolist() == [[18.0]]


def test_the_report_shows_pictures_in_their_shape() -> None:
    subject = trained()
    assert len(answered(subject, encode_examples(subject, Tiles(), 4))) == 4
    (wide, tall, *_) = patch_maps({"now": subject}, Tiles())
    assert wide.maps != tall.maps


def test_maps_of_a_model_lie_where_the_patches_do() -> None:
    predictor = trained()
    wide, tall = (np.zeros((*size, 3), np.uint8) for size in ((40, 160), (160, 40)))
    assert predictor.features(wide).shape == (1, 2, 8, 32) and predictor.features([tall, tall]).shape == (2, 8, 2, 32)
    assert predictor.similarity(wide, "a red tile").shape == (1, 2, 8)
    found = predictor.locate(wide, "the red one")
    assert found.box[2] <= 160 and found.box[3] <= 40
    with pytest.raises(UserError, match="different shapes.*one at a time"):
        predictor.features([wide, tall])


# Checkpoints of transformers


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Siglip2Model as the hub has them, with tokenizer and an image processor of more patches than its table has."""
    folder = tmp_path_factory.mktemp("naflex")
    peers.siglip2_naflex(folder)
    Siglip2ImageProcessor(patch_size=peers.PATCH, max_num_patches=20).save_pretrained(folder)
    return folder


@cache
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    small = [rng.integers(0, 256, (h // 40, w // 40, 3), dtype=np.uint8) for h, w in SIZES]
    return [Image.fromarray(x).resize((w, h), Image.Resampling.BICUBIC) for x, (h, w) in zip(small, SIZES, strict=True)]


@torch.no_grad()
def embeddings(folder: Path, **how: Any) -> Tensor:
    """What plain transformers makes of the pictures, [5, D] of length 1."""
    model, processor = AutoModel.from_pretrained(folder).eval(), Siglip2ImageProcessor.from_pretrained(folder)
    inputs = processor(pictures(), return_tensors="pt", **how)
    pooled = model.get_image_features(**inputs).pooler_output
    return F.normalize(pooled, dim=-1)


def test_a_siglip2_model_is_read_as_naflex_and_sees_what_its_own_library_sees(checkpoint: Path) -> None:
    networks = Pretrained.open(checkpoint).model.architecture
    assert networks.naflex and (networks.resolution, networks.patch) == (peers.SIDE, peers.PATCH)
    predictor, theirs = opensiglip.load(checkpoint), embeddings(checkpoint)
    assert predictor.frame == NaFlex(peers.PATCH, 20, (20,))
    assert theirs.std(0).max() > 1e-2, "all alike: nothing to compare"
    assert peers.gap(predictor.embed_images(pictures()), theirs) < CLOSE
    squashed = replace(predictor.pretrained, frame=NaFlex(peers.PATCH, 16, (16,)))
    fewer = Predictor(squashed).embed_images(pictures())
    assert (fewer - theirs).abs().max() > 1e-3, "the processor's number of patches matters"


def test_a_naflex_checkpoint_leaves_as_one(checkpoint: Path, tmp_path: Path) -> None:
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "out")]) == 0
    theirs = embeddings(checkpoint)
    assert type(AutoModel.from_pretrained(tmp_path / "out")).__name__ == "Siglip2Model"
    assert peers.gap(embeddings(tmp_path / "out"), theirs) < CLOSE
    assert "max_num_patches=20" in (tmp_path / "out" / "README.md").read_text()
    back = opensiglip.load(tmp_path / "out")
    assert peers.gap(back.embed_images(pictures()), theirs) < CLOSE
    texts = ["a red tile", "two of them"]
    processor, model = AutoProcessor.from_pretrained(tmp_path / "out"), AutoModel.from_pretrained(checkpoint)
    ids = processor(text=texts, padding="max_length", max_length=peers.LENGTH, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        read_there = F.normalize(model.get_text_features(ids).pooler_output, dim=-1)
    for folder in (checkpoint, tmp_path / "out"):
        assert peers.gap(opensiglip.load(folder).embed_texts(texts), read_there) < CLOSE


@torch.no_grad()
def test_a_naflex_image_tower_alone_comes_and_goes(tmp_path: Path) -> None:
    peers.siglip2_naflex(tmp_path / "whole")
    tower = Siglip2VisionModel.from_pretrained(tmp_path / "whole").eval()
    tower.save_pretrained(tmp_path / "tower")
    cut = Siglip2ImageProcessor(patch_size=peers.PATCH, max_num_patches=16)
    inputs = cut(pictures(), return_tensors="pt")
    theirs = F.normalize(tower(**inputs).pooler_output, dim=-1)
    assert Pretrained.open(tmp_path / "tower").model.architecture.naflex
    assert main(["export", str(tmp_path / "tower"), "--out", str(tmp_path / "out")]) == 0
    for folder in (tmp_path / "tower", tmp_path / "out"):
        assert peers.gap(opensiglip.load(folder).embed_images(pictures()), theirs) < CLOSE
    again = AutoModel.from_pretrained(tmp_path / "out")
    assert type(again) is Siglip2VisionModel
    assert peers.gap(F.normalize(again(**inputs).pooler_output, dim=-1), theirs) < CLOSE


def test_onnxruntime_computes_transformers_embeddings_at_any_batch_size_and_aspect(
    checkpoint: Path, tmp_path: Path
) -> None:
    assert main(["export", str(checkpoint), "--format", "onnx", "--out", str(tmp_path / "out")]) == 0
    session = onnxruntime.InferenceSession(tmp_path / "out" / "image_encoder.onnx")
    processor, ours = Siglip2ImageProcessor.from_pretrained(tmp_path / "out"), opensiglip.load(checkpoint)
    for budget in (9, 20, 50):
        theirs, seen = embeddings(checkpoint, max_num_patches=budget), []
        mine = replace(ours.pretrained, frame=NaFlex(peers.PATCH, budget, (budget,)))
        for some in (pictures()[:1], pictures()[1:]):
            inputs = dict(processor(some, return_tensors="np", max_num_patches=budget))
            assert len({tuple(shape) for shape in inputs["spatial_shapes"]}) > len(some) // 2, "unlike aspect ratios"
            seen += list(session.run(["image_embeds"], inputs)[0])
        found = torch.from_numpy(np.stack(seen))
        assert peers.gap(found, theirs) < CLOSE
        predictor = Predictor(mine)
        assert peers.gap(found, predictor.embed_images(pictures())) < CLOSE
    facts = json.loads((tmp_path / "out" / "opensiglip.json").read_text())
    assert facts["logit_bias"] == -3.0 and "image_embeds" in (tmp_path / "out" / "README.md").read_text()


def test_training_starts_from_a_naflex_checkpoint_at_native_aspect(
    checkpoint: Path, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {"steps": 2, "batch_size": 4, "workers": 0, "held_out": 4, "precision": "fp32"}
    settings |= {"lr": 1e-9, "warmup": 0, "init": str(checkpoint), "budgets": (4, 9)}
    summary = train("siglip2_naflex", data=[folder], out=tmp_path / "run", **settings)
    theirs = Pretrained.open(checkpoint).model.state_dict()
    ours = Model.from_pretrained(tmp_path / "run" / "model").state_dict()
    assert all((ours[name] - theirs[name]).abs().max() < 1e-6 for name in theirs)
    said = capsys.readouterr().out
    assert "resized" not in said
    assert "images      at most 16 patches of 8 × 8 pixels in their own aspect ratio; in training 4 9\n" in said
    assert summary["held_out"]["examples"] == 4
    assert opensiglip.load(tmp_path / "run").frame == NaFlex(peers.PATCH, 16, (16,))
    assert "at most 16 patches of 8 × 8 pixels" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("most", [0, 10**9, "many"])
def test_an_impossible_image_processor_is_named(most: Any, tmp_path: Path) -> None:
    peers.siglip2_naflex(tmp_path)
    facts = {"image_processor_type": "Siglip2ImageProcessor", "patch_size": 8, "max_num_patches": most}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=r"has an image processor of .* patches; give 1 to 65536"):
        opensiglip.load(tmp_path)
