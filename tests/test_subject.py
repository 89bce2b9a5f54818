"""Whatever a model comes from, a subject sees and reads as its own library does."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Small
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

from opensiglip.data.text import TextPipeline
from opensiglip.inference.subject import Subject
from opensiglip.models.model import Model

TEXTS = ["a Red apple", "two dogs and a very long tail of words that goes on and on " * 4]
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_a_run_of_ours_is_the_model_itself(small: Small, pipeline: TextPipeline, tmp_path: Path) -> None:
    recipe = small("siglip2")
    torch.manual_seed(0)
    model = Model.new(recipe.architecture, len(pipeline)).eval()
    about = {"text": pipeline.save_pretrained(tmp_path), "boxes": str(recipe.boxes), "tasks": list(recipe.tasks)}
    model.save_pretrained(tmp_path, about | {"languages": ["en", "de"]})
    subject = Subject.load(tmp_path)
    assert subject.has_text and subject.has_decoder and subject.languages == ("en", "de")
    assert subject.tasks == recipe.tasks and subject.boxes == recipe.boxes and subject.frame.resolution == 32
    assert subject.scale == pytest.approx(10) and subject.bias == pytest.approx(-10)
    with torch.no_grad():
        features = model.vision(pixels().float() / 127.5 - 1)
        ids = torch.from_numpy(np.stack([pipeline.fixed(text) for text in TEXTS]))
        assert model.text is not None
        texts = F.normalize(model.text(ids).pooled, dim=-1)
    seen = subject.see(pixels())
    assert seen.pooled is not None and features.pooled is not None
    torch.testing.assert_close(seen.pooled, features.pooled, rtol=0, atol=1e-6)
    torch.testing.assert_close(seen.tokens, features.tokens, rtol=0, atol=1e-6)
    torch.testing.assert_close(subject.read(TEXTS), texts, rtol=0, atol=1e-6)


def test_a_patch_alone_in_its_image_is_what_the_image_is(small: Small, pipeline: TextPipeline) -> None:
    recipe = small("siglip")
    torch.manual_seed(0)
    model = Model.new(recipe.architecture, len(pipeline)).eval()
    subject = Subject.of(model, pipeline, name="it")
    assert subject.to_text is not None
    token = torch.randn(2, 1, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        alike = token.expand(-1, 16, -1)  # attention over equal tokens is attention over one
        torch.testing.assert_close(subject.to_text(token)[:, 0], model.vision.pool(alike), rtol=0, atol=1e-5)
    assert subject.dense(pixels()).shape == (3, len(subject.see(pixels()).tokens[0]), 32)


def test_siglip_of_transformers(pipeline: TextPipeline, tmp_path: Path) -> None:
    torch.manual_seed(0)
    text = SiglipTextConfig(**TOWER, vocab_size=len(pipeline), max_position_embeddings=16, projection_size=32)
    vision = SiglipVisionConfig(**TOWER, image_size=32, patch_size=8)
    model = SiglipModel(SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())).eval()
    model.save_pretrained(tmp_path)
    pipeline.tokenizer.save_pretrained(tmp_path)
    subject = Subject.load(tmp_path)
    inputs = pipeline.tokenizer(
        [text.lower() for text in TEXTS], padding="max_length", max_length=16, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        said = model(input_ids=inputs["input_ids"], pixel_values=pixels().float() / 127.5 - 1)
    torch.testing.assert_close(subject.read(TEXTS), said.text_embeds, rtol=0, atol=1e-5)
    pooled = subject.see(pixels()).pooled
    assert pooled is not None
    torch.testing.assert_close(F.normalize(pooled, dim=-1), said.image_embeds, rtol=0, atol=1e-5)
    assert subject.frame.resolution == 32 and not subject.has_decoder


def test_clip_of_transformers(pipeline: TextPipeline, tmp_path: Path) -> None:
    torch.manual_seed(0)
    text = CLIPTextConfig(**TOWER, vocab_size=len(pipeline), max_position_embeddings=16, eos_token_id=1, pad_token_id=0)
    vision = CLIPVisionConfig(**TOWER, image_size=32, patch_size=8)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=24)
    model = CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    pipeline.tokenizer.save_pretrained(tmp_path)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    subject = Subject.load(tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    processor = CLIPImageProcessor.from_pretrained(tmp_path)
    inputs = tokenizer(TEXTS, padding=True, max_length=16, truncation=True, return_tensors="pt")
    images = processor(images=list(pixels()), return_tensors="pt")
    with torch.no_grad():
        said = model(**inputs, **images)
    torch.testing.assert_close(subject.read(TEXTS), said.text_embeds, rtol=0, atol=1e-5)
    pooled = subject.see(pixels()).pooled
    assert pooled is not None
    torch.testing.assert_close(F.normalize(pooled, dim=-1), said.image_embeds, rtol=0, atol=1e-4)
    assert subject.dense(pixels()).shape == (3, 16, 24) and subject.bias is None


def test_open_clip(tmp_path: Path) -> None:
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
    subject = Subject.load(f"open_clip:small-clip:{tmp_path / 'weights.pt'}")
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (model.visual.image_mean, model.visual.image_std))
    with torch.no_grad():
        images = model.encode_image((pixels() / 255 - mean) / std, normalize=True)
        texts = model.encode_text(open_clip.get_tokenizer("small-clip")(TEXTS), normalize=True)
    pooled = subject.see(pixels()).pooled
    assert pooled is not None
    torch.testing.assert_close(F.normalize(pooled, dim=-1), images, rtol=0, atol=1e-5)
    torch.testing.assert_close(subject.read(TEXTS), texts, rtol=0, atol=1e-5)
    assert subject.dense(pixels()).shape == (3, 16, 24)


def test_timm_is_vision_only(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    from transformers import TimmWrapperConfig, TimmWrapperModel

    torch.manual_seed(0)
    config = TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args={"img_size": 32, "depth": 2})
    model = TimmWrapperModel(config).eval()
    model.save_pretrained(tmp_path)
    subject = Subject.load(f"timm:{tmp_path}")
    mean, std = (torch.tensor(model.timm_model.pretrained_cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        pooled = model.timm_model((pixels() / 255 - mean) / std)
    seen = subject.see(pixels())
    assert seen.pooled is not None and not subject.has_text and seen.tokens.shape == (3, 4, 192)
    torch.testing.assert_close(seen.pooled, pooled, rtol=0, atol=1e-5)
