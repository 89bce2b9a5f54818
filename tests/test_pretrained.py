"""Whatever a model was read from, its `Pretrained` sees and reads as the library that made it does."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
)

from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.checkpoints.source import read_tensors
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError

TEXTS = ["a Red apple", "two dogs and a very long tail of words that goes on and on " * 4]
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def images() -> torch.Tensor:
    """[3, 3, 32, 32] uint8."""
    return torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def embeddings(pretrained: Pretrained) -> tuple[torch.Tensor, torch.Tensor]:
    """Those of `images` and `TEXTS`, of length 1."""
    assert pretrained.pipeline is not None
    ids = torch.from_numpy(np.stack([pretrained.pipeline.fixed(text) for text in TEXTS]))
    image, text = pretrained.model.vision(images().float() / 127.5 - 1), pretrained.model.text(ids)
    return F.normalize(image.pooled, dim=-1), F.normalize(text.pooled, dim=-1)


def siglip_folder(pipeline: TextPipeline, folder: Path) -> SiglipModel:
    """A SiglipModel of transformers and its folder, with a tokenizer that pads to its length."""
    torch.manual_seed(0)
    text = SiglipTextConfig(**TOWER, vocab_size=len(pipeline), max_position_embeddings=16, projection_size=32)
    vision = SiglipVisionConfig(**TOWER, image_size=32, patch_size=8)
    model = SiglipModel(SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())).eval()
    torch.nn.init.constant_(model.logit_scale, 2.3)
    model.save_pretrained(folder)
    pipeline.with_length(16).save_pretrained(folder)
    return model


def test_siglip_of_transformers(pipeline: TextPipeline, tmp_path: Path) -> None:
    model = siglip_folder(pipeline, tmp_path)
    pretrained, tokenizer = Pretrained.open(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)
    inputs = tokenizer(TEXTS, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
    with torch.no_grad():
        output = model(input_ids=inputs["input_ids"], pixel_values=images().float() / 127.5 - 1)
    image, text = embeddings(pretrained)
    torch.testing.assert_close(text, output.text_embeds, rtol=0, atol=1e-5)
    torch.testing.assert_close(image, output.image_embeds, rtol=0, atol=1e-5)
    assert pretrained.frame.pixels == 32 and pretrained.model.decoder is None and pretrained.tasks == ()


def test_clip_of_transformers(pipeline: TextPipeline, tmp_path: Path) -> None:
    torch.manual_seed(0)
    text = CLIPTextConfig(**TOWER, vocab_size=len(pipeline), max_position_embeddings=16, eos_token_id=1, pad_token_id=0)
    vision = CLIPVisionConfig(**TOWER, image_size=32, patch_size=8)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=24)
    model = CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    pipeline.tokenizer.save_pretrained(tmp_path)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    pretrained = Pretrained.open(tmp_path)
    tokenizer, processor = (
        PreTrainedTokenizerFast.from_pretrained(tmp_path),
        CLIPImageProcessor.from_pretrained(tmp_path),
    )
    inputs = tokenizer(TEXTS, padding=True, max_length=16, truncation=True, return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs, **processor(images=list(images()), return_tensors="pt"))
        dense = pretrained.model.vision.to_text(pretrained.model.vision(images().float() / 127.5 - 1).tokens)
    image, text_embeds = embeddings(pretrained)
    torch.testing.assert_close(text_embeds, output.text_embeds, rtol=0, atol=1e-5)
    torch.testing.assert_close(image, output.image_embeds, rtol=0, atol=1e-4)
    with pytest.raises(UserError, match="CLIPModel, a format that can't be written"):
        pretrained.save(tmp_path / "out")
    assert dense.shape == (3, 16, 24) and pretrained.model.logit_bias is None and pretrained.frame.pixels == 32


def test_open_clip_by_its_own_library(tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    tower = {"width": 32, "layers": 2, "heads": 2}
    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, **tower},
    }
    (tmp_path / "small-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    torch.manual_seed(0)
    model = open_clip.create_model("small-clip").eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"weights\.pt, which would be unpickled; save them as \.safetensors"):
        Pretrained.open(f"open_clip:small-clip:{tmp_path / 'weights.pt'}")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    with pytest.raises(UserError, match="folder has 0 .safetensors files"):
        Pretrained.open(f"open_clip:local-dir:{folder}")
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    save_file(model.state_dict(), folder / "other.safetensors")
    with pytest.raises(UserError, match="folder has 2 .safetensors files"):
        Pretrained.open(f"open_clip:local-dir:{folder}")
    (folder / "other.safetensors").unlink()
    for spec in (f"local-dir:{folder}", f"small-clip:{folder / 'open_clip_model.safetensors'}"):
        state = Pretrained.open(f"open_clip:{spec}").model.text.state_dict()
        assert all(torch.equal(x, state[f"model.{name}"]) for name, x in model.state_dict().items())
    pretrained = Pretrained.open(f"open_clip:small-clip:{folder / 'open_clip_model.safetensors'}")
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (model.visual.image_mean, model.visual.image_std))
    with torch.no_grad():
        expected = model.encode_image((images() / 255 - mean) / std, normalize=True)
        texts = model.encode_text(open_clip.get_tokenizer("small-clip")(TEXTS), normalize=True)
        tokens = pretrained.model.vision(images().float() / 127.5 - 1).tokens
    image, text = embeddings(pretrained)
    torch.testing.assert_close(image, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(text, texts, rtol=0, atol=1e-5)
    assert pretrained.model.vision.to_text(tokens).shape == (3, 16, 24)


class Letters:
    """An open_clip tokenizer: a letter an id from 10 on; 1 begins, 2 ends, 0 pads; perhaps 3 at the last place."""

    context_length = 8

    def __init__(self, last: int | None, end: int = 2) -> None:
        self.last, self.end, self.vocab_size = last, end, 200

    def encode(self, text: str) -> list[int]:
        return [10 + ord(letter) for letter in text.lower() if letter != " "]

    def __call__(self, texts: list[str]) -> torch.Tensor:
        rows = torch.zeros(len(texts), 8, dtype=torch.long)
        room = 8 if self.last is None else 7
        for row, text in zip(rows, texts, strict=True):
            ids = [1, *self.encode(text)[: room - 2], self.end]
            row[: len(ids)] = torch.tensor(ids)
            if self.last is not None:
                row[-1] = self.last
        return rows


@pytest.mark.parametrize(("last", "end"), [(None, 2), (3, 2), (None, 0)])
def test_rows_of_any_open_clip_tokenizer_are_start_text_end_and_padding(last: int | None, end: int) -> None:
    pipeline = TextPipeline.of_open_clip(Letters(last, end), "it")
    for text in ("A cat", "", "a long text with more letters than there are places"):
        assert pipeline.fixed(text).tolist() == Letters(last, end)([text])[0].tolist()
    assert pipeline.policy.start_id == 1 and pipeline.policy.last_id == last


def test_a_tokenizer_of_another_form_is_refused() -> None:
    class Backwards(Letters):
        def __call__(self, texts: list[str]) -> torch.Tensor:
            return super().__call__(texts).flip(1)

    with pytest.raises(UserError, match="gives rows that are not start, text, end and padding"):
        TextPipeline.of_open_clip(Backwards(None), "it")


def test_timm_is_vision_only(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    from transformers import TimmWrapperConfig, TimmWrapperModel

    torch.manual_seed(0)
    config = TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args={"img_size": 32, "depth": 2})
    model = TimmWrapperModel(config).eval()
    model.save_pretrained(tmp_path)
    pretrained = Pretrained.open(f"timm:{tmp_path}")
    mean, std = (torch.tensor(model.timm_model.pretrained_cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        pooled, seen = model.timm_model((images() / 255 - mean) / std), pretrained.model.vision(images() / 127.5 - 1)
    assert seen.pooled is not None and pretrained.model.text is None and seen.tokens.shape == (3, 4, 192)
    torch.testing.assert_close(seen.pooled, pooled, rtol=0, atol=1e-5)
    assert pretrained.frame.pixels == 32


@pytest.mark.parametrize("shard", ["../stolen.safetensors", "/stolen.safetensors", "a\\b.safetensors", ".."])
def test_an_index_names_no_shard_outside_its_folder(tmp_path: Path, shard: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"weight": shard}}))
    with pytest.raises(UserError, match="outside"):
        read_tensors(tmp_path, "model.safetensors", "mine")
