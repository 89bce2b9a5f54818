"""RUN/model is what users take away: plain transformers reads it and gives our embeddings."""

import json
import math
import shutil
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peers
import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import SIDE, Small
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel, AutoProcessor
from transformers import pipeline as transformers_pipeline

from opensiglip import load
from opensiglip.apps.cli import main
from opensiglip.checkpoints.formats.onnx import TOLERANCE, write_onnx
from opensiglip.checkpoints.model_card import write_card
from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.data.example import Example, Source
from opensiglip.data.fields.frame import Frame
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.json_file import SIDECAR
from opensiglip.models.model import Model, read_sidecar
from opensiglip.training.run import train

TEXTS = ("a red apple", "Two  SHOVELS above a mate,\nand nothing else", "ein Löffel")


@dataclass
class Exported:
    """A model and the folder it was written to."""

    folder: Path
    model: Model
    pipeline: TextPipeline


@pytest.fixture(scope="module")
def exported(small: Small, scenes: Source, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    """An untrained, but nowhere zero, model of two recipes."""
    made = {}
    for name in ("siglip2", "cappa"):
        recipe = small(name, length=64)
        texts = [text for text, _ in zip(scenes.texts(), range(200), strict=False)]
        pipeline = TextPipeline.train(texts, size=350, length=recipe.architecture.length)
        torch.manual_seed(0)
        model = Model.new(recipe.architecture, len(pipeline)).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.1)
        folder = tmp_path_factory.mktemp(name) / "model"
        card = {
            "recipe": name,
            "languages": ["en"],
            "size": "tiny",
            "command": f"opensiglip train {name} --data scenes:objects=3 --data 'my: folder'",
            "data": ["scenes:objects=3", "my: folder"],
            "steps": 10,
            "images": 80,
            "results": {"loss, first and last": "9.000 -> 1.000"},
        }
        known: dict[str, Any] = {"boxes": recipe.boxes, "tasks": recipe.tasks, "languages": ["en"]}
        Pretrained.of(model, pipeline, name=name, card=card, **known).save(folder)
        made[name] = Exported(folder, model, pipeline)
    return made


@pytest.fixture
def picture() -> Image.Image:
    """A photograph's shape and noise, of another size than the model's."""
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((140, 100), Image.Resampling.BICUBIC)


def pixels(picture: Image.Image) -> torch.Tensor:
    """As our own frame sees it: [1, 3, S, S] in [-1, 1]."""
    square = picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)[None].float() / 127.5 - 1


@torch.no_grad()
def test_plain_transformers_gives_our_embeddings(exported: dict[str, Exported], picture: Image.Image) -> None:
    ours = exported["siglip2"]
    theirs = AutoModel.from_pretrained(ours.folder)
    processor = AutoProcessor.from_pretrained(ours.folder)
    assert type(theirs).__name__ == "SiglipModel"
    inputs = processor(
        text=list(TEXTS), images=picture, padding="max_length", max_length=64, truncation=True, return_tensors="pt"
    )
    output = theirs(**inputs)
    ids = torch.from_numpy(np.stack([ours.pipeline.fixed(text) for text in TEXTS]))
    assert torch.equal(inputs["input_ids"], ids)
    assert float((inputs["pixel_values"] - pixels(picture)).abs().max()) < 0.01  # one step of 255 at most
    assert ours.model.text is not None
    image = F.normalize(ours.model.vision(inputs["pixel_values"]).pooled, dim=-1)
    text = F.normalize(ours.model.text(ids).pooled, dim=-1)
    assert float((output.image_embeds - image).abs().max()) < 1e-6
    assert float((output.text_embeds - text).abs().max()) < 1e-6
    logits = image @ text.T * ours.model.logit_scale.exp() + ours.model.logit_bias
    assert float((output.logits_per_image - logits).abs().max()) < 1e-5
    assert float((text[0] - text[1]).abs().max()) > 0.01  # texts differ, so this compared something


@pytest.mark.parametrize(("kind", "gap"), [("torchvision", 0), ("pil", 1)])
def test_the_written_processor_sees_what_our_frame_sees(kind: str, gap: int, exported: dict[str, Exported]) -> None:
    """Smooth photos of twelve other sizes, larger and smaller, in grey steps of 255: the same pixels by transformers'
    processor, which computes with torchvision; by its other one, which computes with PIL, one step apart at most, at
    no more than two values in a hundred.
    """
    processor = AutoImageProcessor.from_pretrained(exported["siglip2"].folder, backend=kind)
    rng = np.random.default_rng(0)
    for _ in range(12):
        height, width = rng.integers(20, 400, 2).tolist()
        coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
        photo = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        image = torch.from_numpy(np.array(photo)).permute(2, 0, 1).contiguous()
        ours, _ = Frame(SIDE).apply(Example(image, ()), None)
        seen = (processor(photo, return_tensors="pt")["pixel_values"][0] + 1) * 127.5
        assert float((seen - seen.round()).abs().max()) < 1e-4, "whole grey steps"
        steps = (seen.round() - ours.float()).abs()
        assert int(steps.max()) <= gap and float((steps > 0).float().mean()) < 0.02


@torch.no_grad()
@pytest.mark.filterwarnings("default")  # of the other library, about its own parts
def test_sentence_transformers_gives_our_embeddings_of_texts_of_any_length(
    exported: dict[str, Exported], picture: Image.Image
) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    ours = exported["siglip2"]
    theirs = sentence_transformers.SentenceTransformer(str(ours.folder), local_files_only=True, device="cpu")
    ids = torch.from_numpy(np.stack([ours.pipeline.fixed(text) for text in TEXTS]))
    assert ours.model.text is not None
    for texts, rows in ((list(TEXTS), ids), ([TEXTS[0]], ids[:1])):
        found = torch.tensor(theirs.encode(texts))
        assert (
            float((F.normalize(found, dim=-1) - F.normalize(ours.model.text(rows).pooled, dim=-1)).abs().max()) < 1e-5
        )
    seen = AutoImageProcessor.from_pretrained(ours.folder)(picture, return_tensors="pt")["pixel_values"]
    image = torch.tensor(theirs.encode([picture]))
    expected = F.normalize(ours.model.vision(seen).pooled, dim=-1)
    assert float((F.normalize(image, dim=-1) - expected).abs().max()) < 1e-5


def test_a_zero_shot_pipeline_runs_on_a_picture(exported: dict[str, Exported], picture: Image.Image) -> None:
    ours = exported["siglip2"]
    classify = transformers_pipeline("zero-shot-image-classification", model=str(ours.folder))
    answers = classify(picture, candidate_labels=["red apple", "shovel"], hypothesis_template="a {}")
    assert {answer["label"] for answer in answers} == {"red apple", "shovel"}
    with torch.no_grad():
        processor = AutoProcessor.from_pretrained(ours.folder)
        image = ours.model.vision(processor(images=picture, return_tensors="pt")["pixel_values"]).pooled
        text = ours.model.text(torch.from_numpy(ours.pipeline.fixed("a red apple"))[None]).pooled
        cosine = F.cosine_similarity(image, text)
        expected = torch.sigmoid(cosine * ours.model.logit_scale.exp() + ours.model.logit_bias)
    score = next(answer["score"] for answer in answers if answer["label"] == "red apple")
    assert score == pytest.approx(expected.item(), rel=1e-4)


@torch.no_grad()
def test_a_captioning_recipe_exports_a_vision_model(exported: dict[str, Exported], picture: Image.Image) -> None:
    ours = exported["cappa"]
    theirs, processor = AutoModel.from_pretrained(ours.folder), AutoImageProcessor.from_pretrained(ours.folder)
    assert type(theirs).__name__ == "SiglipVisionModel"
    inputs = processor(picture, return_tensors="pt")
    tokens = ours.model.vision(inputs["pixel_values"]).tokens
    assert float((theirs(**inputs).last_hidden_state - tokens).abs().max()) < 1e-6


@pytest.mark.parametrize("name", ["siglip2", "cappa"])
def test_our_own_model_comes_back_bit_for_bit(exported: dict[str, Exported], name: str) -> None:
    ours = exported[name]
    back = Model.from_pretrained(ours.folder)
    before, after = ours.model.state_dict(), back.state_dict()
    assert before.keys() == after.keys()
    assert [key for key in before if not torch.equal(before[key], after[key])] == []
    assert any(key.startswith("decoder.") for key in after)
    assert back.architecture == ours.model.architecture
    pipeline = TextPipeline.from_pretrained(ours.folder, read_sidecar(ours.folder)["text"])
    assert all(np.array_equal(pipeline.fixed(text), ours.pipeline.fixed(text)) for text in TEXTS)


@pytest.mark.parametrize(
    ("recipe", "format", "said"),
    [
        ("siglip", "transformers", "logits_per_image.sigmoid()"),
        ("clip", "transformers", "logits_per_image.softmax(-1)"),
        ("siglip", "onnx", "sigmoid(`logit_scale` · dot product + `logit_bias`)"),
        ("clip", "onnx", "softmax(`logit_scale` · dot products)"),
        ("coca", "onnx", "`text_encoder.onnx` takes `input_ids`"),
    ],
)
def test_the_card_gives_the_probability_that_the_loss_taught(
    small: Any, pipeline: TextPipeline, tmp_path: Path, recipe: str, format: str, said: str
) -> None:
    model = Model.new(small(recipe).architecture, len(pipeline)).eval()
    write_card(tmp_path, Pretrained.of(model, pipeline, name=recipe), format)
    card = (tmp_path / "README.md").read_text()
    assert said in card and ("sigmoid" in said or "sigmoid" not in card)
    assert format != "onnx" or "beside.safetensors" not in card, "which an export for onnxruntime does not have"


def test_an_export_for_onnxruntime_is_named_as_such(tmp_path: Path) -> None:
    """Its opensiglip.json lacks what a model is built from."""
    (tmp_path / "image_encoder.onnx").touch()
    (tmp_path / SIDECAR).write_text("{}")
    with pytest.raises(UserError, match="is an export for onnxruntime"):
        Model.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["siglip2", "cappa"])
def test_the_model_card_is_one(exported: dict[str, Exported], name: str) -> None:
    _, front, body = (exported[name].folder / "README.md").read_text().split("---\n", 2)
    facts = yaml.safe_load(front)
    assert facts["library_name"] == "transformers"
    assert (
        facts["pipeline_tag"]
        == {
            "siglip2": "zero-shot-image-classification",
            "cappa": "image-feature-extraction",
        }[name]
    )
    assert facts["tags"] == ["opensiglip", name]
    assert body.startswith(f"# {name} ")
    assert f"opensiglip train {name} --data scenes:objects=3 --data 'my: folder'" in body
    assert "| data | scenes:objects=3; my: folder |" in body
    assert "| loss, first and last | 9.000 -> 1.000 |" in body
    assert ("AutoProcessor" in body) == (name == "siglip2")
    assert "{{" not in body and "{%" not in body


def test_the_example_in_the_model_card_runs(
    exported: dict[str, Exported], picture: Image.Image, monkeypatch: Any
) -> None:
    for name, result in (("siglip2", "probability"), ("cappa", "tokens")):
        monkeypatch.chdir(exported[name].folder.parent)
        code = Path("model/README.md").read_text().split("```python\n")[1].split("```")[0]
        names: dict[str, Any] = {"image": picture}
        exec(compile(code, "README.md", "exec"), names)
        assert names[result].isfinite().all()


def test_temperature_and_bias_that_never_were_set_are_noticed(exported: dict[str, Exported], tmp_path: Path) -> None:
    model = Model.new(exported["siglip2"].model.architecture, 350)
    model.save_pretrained(tmp_path / "ours")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = Model.from_pretrained(tmp_path / "ours")
    assert (back.logit_scale.item(), back.logit_bias.item()) == (pytest.approx(math.log(10)), -10)
    for parameter in (model.logit_scale, model.logit_bias):
        torch.nn.init.zeros_(parameter)
    model.save_pretrained(tmp_path / "theirs")
    with pytest.warns(UserWarning, match=r"transformers starts both at 0; SigLIP's are log 10 and -10"):
        Model.from_pretrained(tmp_path / "theirs")


def test_what_is_missing_or_broken_is_named(exported: dict[str, Exported], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has a format that can't be read; give a run, a transformers folder"):
        Pretrained.open(tmp_path)
    exported["cappa"].model.save_pretrained(tmp_path)
    decoder, towers = tmp_path / "decoder.safetensors", tmp_path / "model.safetensors"
    decoder.write_bytes(decoder.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"decoder\.safetensors can't be read"):
        Model.from_pretrained(tmp_path)
    decoder.unlink()
    with pytest.raises(UserError, match=r"decoder\.safetensors is missing"):
        Model.from_pretrained(tmp_path)
    exported["cappa"].model.save_pretrained(tmp_path)
    towers.write_bytes(b"")
    with pytest.raises(UserError, match=r"weights in .* can't be read"):
        Model.from_pretrained(tmp_path)
    towers.unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")  # a pickle does not take its place
    with pytest.raises(UserError, match=r"weights in .* can't be read"):
        Model.from_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"architecture": 1, "vocabulary": 2}', '{"vocabulary": 2}'])
def test_a_broken_sidecar_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / SIDECAR).write_text(text)
    with pytest.raises(UserError, match=rf"{SIDECAR}.*export the run again"):
        Model.from_pretrained(tmp_path)


def test_the_ten_lines_of_the_docs_classify_a_photo(
    exported: dict[str, Exported],
    picture: Image.Image,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = (Path(__file__).parents[1] / "docs" / "how-to" / "pretrained-weights.md").read_text(encoding="utf-8")
    code, by_pipeline = [block.split("```")[0] for block in page.split("```python\n")[1:] if '"mine-hf"' in block]
    assert len([line for line in code.splitlines() if line]) <= 10
    shutil.copytree(exported["siglip2"].folder, tmp_path / "mine-hf")
    picture.save(tmp_path / "photo.png")
    (tmp_path / "photo.png").rename(tmp_path / "photo.jpg")  # not compressed, for the comparison
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "pretrained-weights.md", "exec"), {})
    said = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    ours = load("mine-hf").classify(picture, [name for _, name in said])
    assert len(said) == 3
    assert {name: float(probability) for probability, name in said} == pytest.approx(ours, abs=2e-3)
    exec(compile(by_pipeline, "pretrained-weights.md", "exec"), {})
    found = dict(reversed(line.split("  ")) for line in capsys.readouterr().out.splitlines())
    for text in ("This is a photo of a boat.", "a boat"):
        assert float(found[text]) == pytest.approx(load("mine-hf").classify(picture, [text])[text], abs=2e-3)


@pytest.mark.parametrize("lora", [None, 2])
def test_a_run_that_was_killed_is_exported_as_its_newest_checkpoint_has_it(
    lora: int | None,
    recipe: str,
    folder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    peers.siglip2(tmp_path / "peer")
    killed, out, whole = tmp_path / "killed", tmp_path / "out", tmp_path / "whole"
    settings: dict[str, Any] = {"data": [folder], "steps": 4, "save_every": 2, "batch_size": 8, "workers": 0}
    settings |= {
        "memory_check": False,
        "held_out": 0,
        "precision": "fp32",
        "init": str(tmp_path / "peer"),
        "lora": lora,
    }

    def power_cut(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("opensiglip.training.run.finish", power_cut)
        train(recipe, out=killed, **settings)
    train(recipe, out=whole, **settings)
    assert not (killed / "model" / "config.json").exists()
    capsys.readouterr()
    assert main(["export", str(killed), "--out", str(out)]) == 0
    assert f"{killed} is not finished: this is its newest checkpoint, after 4 steps" in capsys.readouterr().out
    expected = Model.from_pretrained(whole / "model").state_dict()
    for place in (out, killed):
        found = Pretrained.open(place).model.state_dict()
        assert found.keys() == expected.keys()
        assert all((found[name] - expected[name]).abs().max() < 1e-6 for name in expected)
    assert AutoModel.from_pretrained(out).config.model_type == "siglip"
    card = (out / "README.md").read_text()
    assert "| 4 (the run had not ended), 32 |" in card and f"opensiglip train {recipe}" in card
    shutil.rmtree(killed / "checkpoints")
    assert main(["export", str(killed), "--out", str(tmp_path / "nothing")]) == 2
    assert "has no checkpoint yet: continue it with --resume" in capsys.readouterr().err


def test_a_run_exports_what_it_learned_and_says_only_what_matters(
    recipe: str, folder: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["train", recipe, "--data", folder, "--out", str(tmp_path / "run"), "--steps", "2", "--batch-size", "8"]
    words += ["--workers", "0", "--held-out", "0", "--precision", "fp32", "--vocabulary", "300"]
    assert main(words) == 0
    assert capfd.readouterr().err == ""  # no chatter of transformers, no progress bar of a file or two
    learned = load_file(tmp_path / "run" / "checkpoints" / "step-00000002" / "learner.safetensors")
    model = Model.from_pretrained(tmp_path / "run" / "model").state_dict()
    kept = {name.removeprefix("model."): tensor for name, tensor in learned.items() if name.startswith("model.")}
    assert kept.keys() == model.keys()  # and nothing of the teacher and the heads
    assert all(torch.equal(model[name], tensor) for name, tensor in kept.items())
    assert json.loads((tmp_path / "run" / "model" / SIDECAR).read_text())["recipe"] == "small"


class Session:
    """onnxruntime's, of an encoder that is off by `error`."""

    error = 0.0

    def __init__(self, path: Path, providers: list[str]) -> None:
        self.path = path

    def run(self, names: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        with torch.no_grad():
            found = GRAPHS[self.path].encoder(**{name: torch.from_numpy(value) for name, value in inputs.items()})
        parts = found if isinstance(found, tuple) else (found,)
        return [part.numpy() + self.error * (number == 0) for number, part in enumerate(parts)]


GRAPHS: dict[Path, Any] = {}


@pytest.mark.parametrize(("error", "refused"), [(0.0, False), (0.5 * TOLERANCE, False), (2 * TOLERANCE, True)])
def test_an_onnx_file_that_computes_something_else_is_refused(
    error: float, refused: bool, exported: dict[str, Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = exported["siglip2"].model
    monkeypatch.setattr("opensiglip.checkpoints.formats.onnx._write", GRAPHS.__setitem__)
    monkeypatch.setattr("onnxruntime.InferenceSession", Session)
    monkeypatch.setattr(Session, "error", error)
    with pytest.raises(UserError, match="computes other values than the model") if refused else nullcontext():
        facts = write_onnx(tmp_path, model)
        assert facts["logit_scale"] == pytest.approx(math.exp(model.logit_scale.item()))
        assert facts["logit_bias"] == pytest.approx(model.logit_bias.item())
        assert facts["logit_scale"] != pytest.approx(model.logit_scale.item(), rel=0.1)
