"""A model written for open_clip and timm is loaded by those libraries and gives our embeddings."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import peers
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image

from opensiglip.checkpoints.export import export
from opensiglip.checkpoints.formats import timm_folder
from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.models.model import Model
from opensiglip.models.sizes import Architecture, Shape

TEXTS = ("a red apple", "Two SHOVELS above a mate", "")
SQUARE = Architecture(
    resolution=peers.SIDE,
    patch=peers.PATCH,
    length=16,
    vision=Shape(32, 2, 64, 2, "gelu"),
    text=Shape(32, 2, 88, 2),
)


def trained(tmp_path: Path, **changes: Any) -> Pretrained:
    """A model nowhere zero, saved as a run's model/ is."""
    networks = replace(SQUARE, **changes)
    pipeline = TextPipeline.train(["a red apple", "two shovels above a mate"] * 20, size=300, length=networks.length)
    model = peers.shaken(Model.new(networks, len(pipeline)))
    pretrained = Pretrained.of(model, pipeline, name="small")
    pretrained.save(tmp_path / "model")
    return pretrained


def gap(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((F.normalize(ours, dim=-1) - F.normalize(theirs, dim=-1)).abs().max())


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_open_clip_loads_the_folder_and_gives_our_embeddings(
    bias: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = trained(tmp_path, logit_bias=bias)
    export(str(tmp_path / "model"), tmp_path / "out", "open_clip")
    assert "open_clip on images differs by at most" in capsys.readouterr().out
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'out'}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'out'}")
    assert ours.pipeline is not None and ours.model.text is not None
    ids = torch.stack([torch.from_numpy(ours.pipeline.fixed(text)) for text in TEXTS])
    assert torch.equal(tokenizer(list(TEXTS)), ids)
    pixels = peers.pixels()
    assert gap(ours.model.vision(pixels).pooled, model.eval().encode_image(pixels)) < 1e-5
    assert gap(ours.model.text(ids).pooled, model.encode_text(ids)) < 1e-5
    assert model.logit_scale.item() == pytest.approx(ours.model.logit_scale.item())
    assert (model.logit_bias is not None) is bias
    assert not bias or model.logit_bias.item() == pytest.approx(ours.model.logit_bias.item()) == -3.0
    assert transform.transforms[0].interpolation.value == ours.model.architecture.interpolation == "bilinear"
    photo = Image.new("RGB", (70, 50), (200, 30, 90))
    assert transform(photo).shape == (3, peers.SIDE, peers.SIDE)
    assert float((transform(photo)[:, 5, 5] - torch.tensor([200, 30, 90]) / 127.5 + 1).abs().max()) < 1e-5
    back = Pretrained.open(tmp_path / "out")
    assert gap(back.model.vision(pixels).pooled, ours.model.vision(pixels).pooled) < 1e-5


@pytest.mark.parametrize(
    ("changes", "pooled"),
    [
        ({}, True),
        ({"vision": Shape(48, 3, 100, 3)}, True),  # of sizes that no timm name has, with the approximate gelu
        ({"text": None, "pooling": False}, False),  # tokens, as captioners have them
    ],
)
@torch.no_grad()
def test_timm_loads_the_image_tower_of_any_size(changes: dict[str, Any], pooled: bool, tmp_path: Path) -> None:
    ours = trained(tmp_path, **changes)
    ours.save(tmp_path / "out", "timm", repository="out")
    encoder = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    features = ours.model.vision(peers.pixels())
    assert gap(features.pooled if pooled else features.tokens, encoder(peers.pixels())) < 1e-5
    frame = timm.data.resolve_model_data_config(encoder)
    assert list(frame["mean"]) == [0.5] * 3 and frame["crop_mode"] == "squash" and frame["crop_pct"] == 1.0
    assert frame["interpolation"] == ours.model.architecture.interpolation == "bilinear"
    back = Pretrained.open(tmp_path / "out").model.vision(peers.pixels())
    assert gap(back.tokens, features.tokens) < 1e-5


@pytest.mark.parametrize("format", ["open_clip", "timm"])
def test_the_example_in_the_card_runs(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(tmp_path).save(tmp_path / "out", format, repository="out")  # type: ignore[arg-type]
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"library_name: {format}" in card and "{{" not in card
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"image": Image.new("RGB", (70, 50), (200, 30, 90))}
    exec(compile(card.split("```python\n")[1].split("```")[0], "README.md", "exec"), names)
    assert names["probability" if format == "open_clip" else "features"].isfinite().all()


def test_another_form_of_the_gelu_is_told_with_its_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path, vision=replace(SQUARE.vision, activation="gelu_pytorch_tanh"))
    export(str(tmp_path / "model"), tmp_path / "out", "open_clip")
    said = capsys.readouterr().out
    assert "its vit_tiny_patch8_siglip_32 has another form of the GELU than the model was trained with" in said


@pytest.mark.parametrize(
    ("changes", "format", "said"),
    [
        ({"vision": Shape(48, 3, 100, 3)}, "open_clip", "timm has no SigLIP ViT of width 48, depth 3, patch 8 at 32"),
        ({"text": None, "pooling": True}, "open_clip", "takes SigLIP's two towers and a tokenizer"),
        ({"naflex": True}, "timm", "takes SigLIP's image tower on square images"),
    ],
)
def test_what_a_library_has_no_place_for_is_refused(
    changes: dict[str, Any], format: str, said: str, tmp_path: Path
) -> None:
    ours = trained(tmp_path, **changes)
    with pytest.raises(UserError, match=said):
        ours.save(tmp_path / "out", format)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_weights_in_the_wrong_place_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def swapped(state: dict[str, Any]) -> dict[str, Any]:
        made = to_timm(state)
        made["blocks.0.norm1.weight"], made["blocks.0.norm2.weight"] = (
            made["blocks.0.norm2.weight"],
            made["blocks.0.norm1.weight"],
        )
        return made

    to_timm = timm_folder.to_timm
    monkeypatch.setattr(timm_folder, "to_timm", swapped)
    with pytest.raises(UserError, match="timm computes other values than the model"):
        trained(tmp_path).save(tmp_path / "out", "timm")
