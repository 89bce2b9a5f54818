"""Whatever a model comes from, a predictor encodes as its own library does."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Small

from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.data.text import TextPipeline
from opensiglip.inference.predictor import Predictor, load
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
    predictor = load(tmp_path)
    assert predictor.has_text and predictor.has_decoder and predictor.languages == ("en", "de")
    assert predictor.tasks == recipe.tasks and predictor.boxes == recipe.boxes and predictor.frame.resolution == 32
    assert predictor.logit_scale == pytest.approx(math.log(10)) and predictor.logit_bias == pytest.approx(-10)
    with torch.no_grad():
        features = model.vision(pixels().float() / 127.5 - 1)
        ids = torch.from_numpy(np.stack([pipeline.fixed(text) for text in TEXTS]))
        assert model.text is not None
        texts = F.normalize(model.text(ids).pooled, dim=-1)
    seen = predictor.encode(pixels())
    assert seen.pooled is not None and features.pooled is not None
    torch.testing.assert_close(seen.pooled, features.pooled, rtol=0, atol=1e-6)
    torch.testing.assert_close(seen.tokens, features.tokens, rtol=0, atol=1e-6)
    torch.testing.assert_close(predictor.encode_texts(TEXTS), texts, rtol=0, atol=1e-6)


def test_a_patch_alone_in_its_image_is_what_the_image_is(small: Small, pipeline: TextPipeline) -> None:
    recipe = small("siglip")
    torch.manual_seed(0)
    model = Model.new(recipe.architecture, len(pipeline)).eval()
    predictor = Predictor(Pretrained.of(model, pipeline, name="it"))
    assert predictor.to_text is not None
    token = torch.randn(2, 1, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        alike = token.expand(-1, 16, -1)  # attention over equal tokens is attention over one
        torch.testing.assert_close(predictor.to_text(token)[:, 0], model.vision.pool(alike), rtol=0, atol=1e-5)
    assert predictor.dense(pixels()).shape == (3, len(predictor.encode(pixels()).tokens[0]), 32)
