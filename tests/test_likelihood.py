"""Log-likelihoods of given texts: each its own, whatever it is packed with."""

import math
from types import SimpleNamespace
from typing import Any

import torch
from toys import SHAPE, small_model

from opensiglip.data.fields.captions import Target
from opensiglip.data.text import TextPipeline, TextPolicy
from opensiglip.inference import likelihood
from opensiglip.inference.likelihood import blind_likelihoods, likelihoods
from opensiglip.inference.text_generator import Prompt, TextGenerator
from opensiglip.models.decoder import Decoder

VOCABULARY, LENGTH, EOS = 96, 12, 1


class Ids(TextPipeline):
    """A pipeline of ids alone."""

    def __init__(self) -> None:
        self.policy = TextPolicy(LENGTH)

    def ids(self, text: str) -> tuple[int, ...]:
        return tuple(map(int, text.split()))


def a_decoder() -> Decoder:
    decoder = small_model(vocabulary=VOCABULARY, length=LENGTH).decoder
    assert decoder is not None
    return decoder


def memory(rows: int) -> torch.Tensor:
    return torch.randn(rows, 16, SHAPE.width, generator=torch.Generator().manual_seed(3))


def one_by_one(decoder: Decoder, image: torch.Tensor, text: Target) -> float:
    ids = (*text.prefix, *text.target)
    inputs = torch.tensor([[0, *ids[:-1]]])
    places, none = torch.arange(len(ids))[None], torch.zeros_like(inputs)
    with torch.no_grad():
        logits = decoder.vocabulary(decoder(inputs, places, none, none.bool(), image[None])[0]).log_softmax(-1)
    return float(logits.gather(1, torch.tensor(ids)[:, None])[len(text.prefix) :].double().sum())


TEXTS = [Target((7, 8), (11, 12, EOS)), Target((), (21, EOS)), Target((9,), tuple(range(30, 40)) + (EOS,))]


def test_a_texts_likelihood_is_its_own_whatever_is_asked_beside_it() -> None:
    decoder, images = a_decoder(), memory(3)
    asked = [(image, TEXTS[number]) for number, image in ((0, 2), (1, 0), (2, 2), (0, 0), (1, 2), (0, 2), (2, 1))] * 30
    expected = {pair: one_by_one(decoder, images[pair[0]], pair[1]) for pair in asked}
    found = likelihoods(decoder, images, asked, Ids())
    assert max(abs(score - expected[pair]) for pair, score in zip(asked, found, strict=True)) < 1e-4
    assert len(set(expected.values())) == 6


def test_no_more_logits_are_held_than_allowed_and_nothing_changes() -> None:
    decoder, images, asked = a_decoder(), memory(2), [(number % 2, text) for number, text in enumerate(TEXTS * 9)]
    before = likelihoods(decoder, images, asked, Ids())
    sizes: list[int] = []
    hook = decoder.vocabulary.register_forward_hook(lambda module, inputs, output: sizes.append(output.numel()))
    limit, likelihood.LOGITS = likelihood.LOGITS, 5 * VOCABULARY
    try:
        after = likelihoods(decoder, images, asked, Ids())
    finally:
        likelihood.LOGITS = limit
        hook.remove()
    assert max(sizes) <= 5 * VOCABULARY
    torch.testing.assert_close(torch.tensor(after), torch.tensor(before), rtol=0, atol=1e-5)


def test_the_blind_likelihood_is_the_mean_over_other_images() -> None:
    decoder, images = a_decoder(), memory(5)
    found = blind_likelihoods(
        lambda asked: likelihoods(decoder, images, asked, Ids()), [(0, TEXTS[0]), (3, TEXTS[0])], len(images)
    )
    for image, blind in zip((0, 3), found, strict=True):
        others = [math.exp(one_by_one(decoder, images[other], TEXTS[0])) for other in range(5) if other != image]
        assert abs(blind - math.log(sum(others) / len(others))) < 1e-4


def test_a_text_is_cut_to_the_length_and_keeps_its_end() -> None:
    model: Any = SimpleNamespace(pali=None, _decoder=a_decoder(), _pipeline=Ids())
    assert TextGenerator.target_ids(model, Prompt((5,), (6,)), " ".join(["40"] * 30)) == (40,) * 9 + (EOS,)
