"""We compute what the authors' code computes: big_vision's CapPa and SigLIP, forward and backward, in float32."""

from collections.abc import Iterable

import numpy as np
import pytest
import torch
from big_vision import GOLDENS, load, under
from torch import Tensor

from opensiglip.checkpoints.formats.big_vision import to_ours
from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.data.fields.captions import Target, pack
from opensiglip.data.text import TextPipeline, TextPolicy
from opensiglip.inference.likelihood import likelihoods
from opensiglip.models.model import Model
from opensiglip.models.sizes import Architecture, Shape
from opensiglip.objectives.base import Encoded
from opensiglip.objectives.captioning import Caption
from opensiglip.objectives.contrastive import Sigmoid
from opensiglip.training.learner import Learner, denominators
from opensiglip.types import Batch

SHAPE, VOCABULARY, LENGTH, EOS = Shape(width=32, depth=2, mlp=64, heads=4), 96, 12, 1
TOLERANCE = 1e-5
CAPPA, SIGLIP = load("cappa"), load("siglip")


def model(name: str) -> Model:
    """As `--init` reads the file: every array has a place, and every place an array."""
    return Pretrained.open(GOLDENS / f"{name}_big_vision.npz").model


def test_the_networks_are_found_in_the_arrays_shapes() -> None:
    expected = Architecture(32, 8, LENGTH, SHAPE, decoder=SHAPE), Architecture(32, 8, LENGTH, SHAPE, text=SHAPE)
    assert (model("cappa").architecture, model("siglip").architecture) == expected
    assert model("cappa").vocabulary == model("siglip").vocabulary == VOCABULARY


def pixels(golden: dict[str, np.ndarray]) -> Tensor:
    return torch.from_numpy(golden["image"]).permute(0, 3, 1, 2)


def captions(parallel: bool) -> tuple[list[int], Batch]:
    """CapPa's labels as our rows, and how long each is with its eos."""
    ends = [row.tolist().index(EOS) + 1 for row in CAPPA["labels"]]
    drawn = [[Target((), tuple(map(int, row[:end])), parallel)] for row, end in zip(CAPPA["labels"], ends, strict=True)]
    return ends, pack(drawn, length=LENGTH, pad_id=0, mask_id=VOCABULARY) | {"image": pixels(CAPPA)}


def largest_difference(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    return max((ours - theirs).abs().max().item() for ours, theirs in pairs)


def gradients(learner: Learner) -> dict[str, Tensor]:
    return {name: x.grad for name, x in learner.model.named_parameters() if x.grad is not None}


def test_the_image_tokens_of_cappa_are_big_visions() -> None:
    tokens = model("cappa").vision(pixels(CAPPA)).tokens
    assert largest_difference([(tokens, torch.from_numpy(CAPPA["encoded"]))]) < TOLERANCE


@pytest.mark.parametrize("mode", ["autoregressive", "parallel"])
def test_the_logits_of_cappa_are_big_visions(mode: str) -> None:
    built = model("cappa")
    ends, batch = captions(mode == "parallel")
    assert built.decoder is not None
    row = [batch[field] for field in ("inputs", "positions", "segments", "full")]
    ours = built.decoder.vocabulary(built.decoder(*row, built.vision(batch["image"]).tokens))
    theirs = torch.from_numpy(CAPPA[f"{mode}/logits"])
    # An autoregressive row of ours ends with its text; theirs goes on over padding, without loss.
    seen = [LENGTH if mode == "parallel" else end for end in ends]
    assert largest_difference((ours[i, :n], theirs[i, :n]) for i, n in enumerate(seen)) < TOLERANCE


@pytest.mark.parametrize("mode", ["autoregressive", "parallel"])
def test_loss_and_every_gradient_of_cappa_are_big_visions(mode: str) -> None:
    learner = Learner(model("cappa"), [Caption()])
    _, batch = captions(mode == "parallel")
    losses, _ = learner(batch, denominators(learner, [batch]))
    losses["loss"].backward()
    assert abs(losses["caption"].item() - CAPPA[f"{mode}/loss"]) < TOLERANCE
    theirs = to_ours(under(CAPPA, f"{mode}/grad/"))
    ours = gradients(learner)
    assert ours.keys() == theirs.keys() == dict(learner.model.named_parameters()).keys()
    assert largest_difference((ours[name], theirs[name]) for name in ours) < TOLERANCE
    assert max(float(gradient.abs().max()) for gradient in theirs.values()) > 100 * TOLERANCE, "no gradient to compare"


def test_the_score_of_a_text_is_its_summed_log_likelihood_as_in_big_vision() -> None:
    built = model("cappa")
    assert built.decoder is not None
    ends = [row.tolist().index(EOS) + 1 for row in CAPPA["labels"]]
    texts = [Target((), tuple(map(int, row[:end]))) for row, end in zip(CAPPA["labels"], ends, strict=True)]
    tokens = built.vision(pixels(CAPPA)).tokens
    every = [(image, text) for text in texts for image in range(len(texts))]  # several texts of an image share a row
    scores = torch.tensor(likelihoods(built.decoder, tokens, every, Ids())).view(len(texts), -1).diagonal()
    assert largest_difference([(scores, torch.from_numpy(CAPPA["score"]))]) < TOLERANCE
    assert np.argsort(CAPPA["score"]).tolist() == scores.argsort().tolist()


class Ids(TextPipeline):
    """A pipeline of ids alone: the goldens have no words."""

    def __init__(self) -> None:
        self.policy = TextPolicy(LENGTH)


def siglip() -> tuple[Learner, Batch]:
    text = torch.from_numpy(SIGLIP["text"]).long()
    batch = {"image": pixels(SIGLIP), "text": text, "has_text": torch.ones(len(text), dtype=torch.bool)}
    return Learner(model("siglip"), [Sigmoid()]), batch


def test_embeddings_and_logits_of_siglip_are_big_visions() -> None:
    learner, batch = siglip()
    (views, text, _), (scale, bias) = Sigmoid().features(Encoded(learner.model, batch))
    assert views.shape[1] == 1
    image = views[:, 0]
    ours = (image, text, scale * image @ text.T + bias)
    names = ("image_embedding", "text_embedding", "logits")
    assert (
        largest_difference((x, torch.from_numpy(SIGLIP[name])) for x, name in zip(ours, names, strict=True)) < TOLERANCE
    )


def test_loss_and_every_gradient_of_siglip_are_big_visions() -> None:
    learner, batch = siglip()
    losses, _ = learner(batch, denominators(learner, [batch]))
    losses["loss"].backward()
    assert abs(losses["sigmoid"].item() - SIGLIP["loss"]) < TOLERANCE
    theirs = to_ours(under(SIGLIP, "grad/"))
    ours = gradients(learner)
    assert ours.keys() == theirs.keys() == dict(learner.model.named_parameters()).keys()
    assert largest_difference((ours[name], theirs[name]) for name in ours) < TOLERANCE
    assert max(float(gradient.abs().max()) for gradient in theirs.values()) > 100 * TOLERANCE, "no gradient to compare"
