"""The dial of sizes, and where `tiny` starts."""

from dataclasses import replace

import pytest
import torch

from opensiglip.data.sources.registry import open_source
from opensiglip.errors import UserError
from opensiglip.models.model import Model
from opensiglip.models.short_start import waves
from opensiglip.models.sizes import SIZES, Shape, architecture
from opensiglip.models.towers import Text


def shares(model: Model) -> tuple[float, float]:
    """Of the variance of a fresh tower's tokens: what their place explains, and what neither place nor image does."""
    source = open_source("scenes:drawings=40,objects=3", pixels=64)
    pixels = torch.stack([source.example(index, "en").image for index in range(64)]).float() / 127.5 - 1
    with torch.no_grad():
        tokens = model.vision(pixels).tokens
    tokens = tokens - tokens.mean((0, 1))
    place, image = tokens.mean(0, keepdim=True), tokens.mean(1, keepdim=True)
    total = tokens.square().mean()
    return float(place.square().mean() / total), float((tokens - place - image).square().mean() / total)


def test_tiny_starts_with_tokens_that_know_their_place_and_content() -> None:
    tiny = architecture("tiny", None)
    for networks, least in ((tiny, 0.1), (replace(tiny, short_start=False), 0.0)):
        torch.manual_seed(0)
        place, content = shares(Model.new(networks, 300))
        assert (place > 0.15 and content > 0.15) == (least > 0)


def test_waves_are_alike_for_neighbours_and_differ_for_all_places() -> None:
    table = waves(8, 128)
    alike = torch.nn.functional.cosine_similarity(table[:, None], table[None], dim=-1)
    assert table.shape == (64, 128)
    assert alike[0, 1] > alike[0, 3] and alike[0, 8] > alike[0, 24]
    assert (alike - 2 * torch.eye(64)).max() < 0.99


@pytest.mark.parametrize("size", [*SIZES, "64x4x256x2/8", "192x12x768x3/16"])
def test_only_towers_no_wider_than_tiny_have_a_start_of_their_own(size: str) -> None:
    assert architecture(size, None).short_start == (size in ("tiny", "64x4x256x2/8"))


def test_the_decoder_is_half_as_deep_or_as_asked() -> None:
    assert architecture("B/16", None, decoder=True).decoder == Shape(768, 6, 3072, 12)
    assert architecture("So400m/14", None, decoder=True).decoder == Shape(1152, 13, 4304, 16)
    assert architecture("16x1x32x2/8", None, decoder=True).decoder == Shape(16, 1, 32, 2), "no layer reads no image"
    assert architecture("B/16", None, decoder=True, decoder_depth=3, decoder_width=512).decoder == Shape(
        512, 3, 2048, 8
    )
    with pytest.raises(UserError, match="--decoder-width 100 is not a multiple of 64"):
        architecture("B/16", None, decoder=True, decoder_width=100)


def test_tiny_starts_with_words_louder_than_their_places() -> None:
    tiny = architecture("tiny", None, text=True)
    for networks, ratio in ((tiny, 10.0), (replace(tiny, short_start=False), 1.0)):
        torch.manual_seed(0)
        text = Model.new(networks, 300).text
        assert isinstance(text, Text)
        embeddings = text.tower.embeddings
        words, positions = embeddings.token_embedding.weight.std(), embeddings.position_embedding.weight.std()
        assert float((words / positions).detach()) == pytest.approx(ratio, rel=0.1)
