"""The towers: Hugging Face's numbers, flax's initialisation, and a gradient for every weight of every recipe."""

import math
from functools import cache
from pathlib import Path
from typing import Any

import peers
import pytest
import torch
import torch.nn.functional as F
from conftest import Small
from torch import Tensor
from toys import SHAPE
from transformers import SiglipModel, SiglipVisionModel

from opensiglip.data.example import Source
from opensiglip.data.loader import DataPlan, Steps, to_device
from opensiglip.data.text import TextPipeline
from opensiglip.models.attention import attention
from opensiglip.models.initialisation import xavier_uniform_probe_
from opensiglip.models.model import Model
from opensiglip.models.sizes import Architecture, Shape
from opensiglip.recipes import RECIPES
from opensiglip.training.learner import Learner, denominators

VOCABULARY, LENGTH = 96, 12


@cache
def siglip() -> Model:
    torch.manual_seed(0)
    model = Model.new(Architecture(32, 8, LENGTH, SHAPE, text=SHAPE), VOCABULARY)
    tower: Any = model.vision.tower
    torch.nn.init.normal_(tower.head.layernorm.bias)
    return model


@torch.no_grad()
def test_our_forward_is_hugging_faces_bit_for_bit() -> None:
    model = siglip()
    host = model.host[0]
    assert isinstance(host, SiglipModel) and model.text is not None
    pixels, ids = torch.randn(3, 3, 32, 32), torch.randint(VOCABULARY, (3, LENGTH))
    for ours, theirs in (
        (model.vision(pixels), host.vision_model(pixels)),
        (model.text(ids), host.text_model(ids)),
    ):
        assert torch.equal(ours.tokens, theirs.last_hidden_state)
        assert torch.equal(ours.pooled, theirs.pooler_output)


@torch.no_grad()
def test_an_image_tower_without_head_is_hugging_faces_too() -> None:
    model = Model.new(Architecture(32, 8, LENGTH, SHAPE, decoder=SHAPE), VOCABULARY)
    host, pixels = model.host[0], torch.randn(2, 3, 32, 32)
    assert isinstance(host, SiglipVisionModel)
    features = model.vision(pixels)
    assert torch.equal(features.tokens, host(pixels).last_hidden_state) and features.pooled is None


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_torchs(masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 4, n, 64, generator=generator) for n in (64, 200, 200))
    mask = (torch.rand(2, 1, 64, 200, generator=generator) < 0.6) | (torch.arange(200) == 0) if masked else None

    def both(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        found = []
        for function in (attention, F.scaled_dot_product_attention):
            q, k, v = leaves = [x.clone().to(dtype).requires_grad_() for x in (query, key, value)]
            out = function(q, k, v, mask)
            found.append([out.detach(), *torch.autograd.grad(out.square().sum(), leaves)])
        return found[0], found[1]

    exact, theirs = both(torch.float32)
    assert all(torch.equal(x, y) for x, y in zip(exact, theirs, strict=True))
    for name, ours, torchs, truth in zip("oqkv", *both(torch.bfloat16), exact, strict=True):
        error, usual = ((x.float() - truth).norm() / truth.norm() for x in (ours, torchs))
        # bfloat16 keeps 8 bits, so one rounding is 2^-9 = 0.2 %. We round the scores too, the fused kernel does not.
        assert ours.dtype == torch.bfloat16 and error < 0.02 and error < 3 * usual, (name, error, usual)


@torch.no_grad()
def test_another_resolution_resizes_positions_bilinearly() -> None:
    vision: Any = siglip().vision
    table = vision.tower.embeddings.position_embedding.weight
    assert torch.equal(vision.positions(4, 4), table[None])
    ramp = torch.arange(4.0)  # a function linear along x stays linear: bicubic would bend it, and x may not become y
    table_before = table.clone()
    try:
        table.copy_(ramp.repeat(4)[:, None].expand(-1, SHAPE.width))
        wide = vision.positions(4, 8)[0, :, 0].unflatten(0, (4, 8))
    finally:
        table.copy_(table_before)
    torch.testing.assert_close(wide[0], torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]))
    assert torch.equal(wide, wide[:1].expand(4, -1))
    assert vision(torch.randn(1, 3, 32, 64)).tokens.shape == (1, 32, SHAPE.width)


@torch.no_grad()
def test_another_amount_of_padding_is_another_text() -> None:
    """The towers have no padding mask and pool the last place: texts must be padded to exactly one length."""
    text = siglip().text
    assert text is not None
    full = F.pad(torch.tensor([[40, 41, 1]]), (0, LENGTH - 3))
    whole, cut = text(full).pooled, text(full[:, :-2]).pooled
    assert whole is not None and cut is not None
    assert F.cosine_similarity(whole, cut).item() < 0.999


def test_siglip_starts_at_temperature_ten_and_bias_minus_ten() -> None:
    model = siglip()
    assert abs(model.logit_scale.item() - math.log(10)) < 1e-6 and model.logit_bias.item() == -10


def test_the_map_head_starts_xavier_uniform_one_projection_at_a_time() -> None:
    torch.manual_seed(0)
    tower: Any = Model.new(Architecture(32, 8, LENGTH, SHAPE, text=SHAPE), VOCABULARY).vision.tower
    head = tower.head.attention
    bound = math.sqrt(6 / (2 * SHAPE.width))  # of [D, D]; of the fused [3 D, D] it would be 0.71 of this
    for weight in (*head.in_proj_weight.chunk(3), head.out_proj.weight):
        assert 0.97 * bound < weight.abs().max().item() <= bound
    assert not head.in_proj_bias.any() and not head.out_proj.bias.any()


D, MLP, FAN_IN = 256, 512, 16 * 16 * 3
WIDE = Shape(width=D, depth=1, mlp=MLP, heads=4)
DEVIATIONS = {  # flax's initialisers, in big_vision's models/vit.py and models/proj/image_text/text_transformer.py
    "patch_embedding.weight": FAN_IN**-0.5,
    "position_embedding.weight": D**-0.5,
    "token_embedding.weight": D**-0.5,
    **dict.fromkeys([f"{part}_proj.weight" for part in ("q", "k", "v", "out")], D**-0.5),
    "in_proj_weight": D**-0.5,
    "fc1.weight": (2 / (D + MLP)) ** 0.5,
    "fc2.weight": (2 / (D + MLP)) ** 0.5,
    "fc1.bias": 1e-6,
    "fc2.bias": 1e-6,
    "probe": (2 / (1 + D)) ** 0.5,
    "text.tower.head.weight": D**-0.5,
}


@pytest.mark.parametrize("kind", ["whole images", "naflex", "beside a timm encoder"])
def test_every_weight_starts_as_wide_as_flaxs(kind: str, tmp_path: Path) -> None:
    """Matrices to 2 %, four times what chance makes of 16,000 numbers; vectors, of a few hundred, to 20 %."""
    encoder = None
    if kind == "beside a timm encoder":
        encoder = str(peers.timm_vit(tmp_path, "vit_tiny_patch8_siglip_32").folder)
    networks = Architecture(256, 16, 64, WIDE, text=WIDE, naflex=kind == "naflex", encoder=encoder)
    torch.manual_seed(0)
    model = Model.new(networks, 300)
    for name, weight in model.named_parameters():
        if name.startswith("logit") or (encoder and name.startswith("vision")):
            continue
        expected = next((x for end, x in DEVIATIONS.items() if name.endswith(end)), 0.0)  # else norms and biases
        tolerance = 0.02 if weight.numel() >= 2**14 else 0.2
        assert float(weight.detach().std()) == pytest.approx(expected, rel=tolerance), name
        if name.endswith(("patch_embedding.weight", "tower.head.weight")):
            assert weight.abs().max() <= 2 * expected / 0.879625, "a normal that is cut"
    probe = xavier_uniform_probe_(torch.empty(1, 1, 2**16))
    assert float(probe.std()) == pytest.approx((2 / (1 + 2**16)) ** 0.5, rel=0.02)


@pytest.mark.parametrize("name", RECIPES)
def test_every_trainable_weight_of_every_recipe_gets_a_gradient(
    name: str, small: Small, scenes: Source, pipeline: TextPipeline
) -> None:
    torch.manual_seed(0)
    recipe = small(name)
    learner = Learner.new(recipe, pipeline)
    if learner.model.decoder is not None:  # its output layer starts at zero, which lets no gradient through
        torch.nn.init.normal_(learner.model.decoder.vocabulary.weight, std=0.02)
    if learner.model.pali is not None:
        torch.nn.init.normal_(learner.model.pali.vocabulary.weight, std=0.02)
    plan = DataPlan(
        sources=[scenes], frame=recipe.frame, fields=recipe.fields, pipeline=pipeline, batch_size=4, seed=0, steps=10
    )
    batch = to_device(Steps(plan)[9].parts[0], torch.device("cpu"))
    learner(batch, denominators(learner, [batch])).losses["loss"].backward()
    slopes = {key: x.grad for key, x in learner.named_parameters() if x.requires_grad}
    assert slopes
    # A key's bias moves all scores of a query alike, so its true gradient is zero.
    silent = [key for key, x in slopes.items() if x is None or not (x.any() or key.endswith("k_proj.bias"))]
    assert silent == []
