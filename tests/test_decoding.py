"""Greedy decoding, and the grammar along which nothing but a box can be written."""

from collections.abc import Callable
from functools import cache
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import like_gpt2, small_model

from opensiglip.data.boxes import ORDERS, SEPARATORS, BoxFormat
from opensiglip.data.captions import Ids, box_ids, referring_prefix
from opensiglip.data.text import TextPipeline
from opensiglip.decoding import BoxGrammar, greedy
from opensiglip.models.decoder import Decoder

Grammars = Callable[[str, BoxFormat], tuple[TextPipeline, BoxGrammar]]


@pytest.fixture(scope="module")
def grammars(pipeline: TextPipeline, tmp_path_factory: pytest.TempPathFactory) -> Grammars:
    """A tokenizer's pipeline and grammar: ours, digits apart, or like GPT-2's, digits merged."""
    pipelines = {
        "ours": pipeline,
        "gpt2": TextPipeline.load(str(like_gpt2(tmp_path_factory.mktemp("gpt2"))), pipeline.policy.length),
    }
    return cache(lambda name, boxes: (pipelines[name], BoxGrammar(pipelines[name], boxes)))


def a_decoder(pipeline: TextPipeline) -> Decoder:
    decoder = small_model(vocabulary=len(pipeline), length=pipeline.policy.length).decoder
    assert decoder is not None
    return decoder


def memory(rows: int) -> torch.Tensor:
    return torch.randn(rows, 16, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["ours", "gpt2"])
@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(ORDERS),
    st.sampled_from([2, 63, 500]),
    st.sampled_from(SEPARATORS),
    st.randoms(use_true_random=False),
)
def test_every_way_along_the_grammar_ends_in_a_box(
    grammars: Grammars, name: str, order: str, top: int, separator: str, draw: Random
) -> None:
    boxes = BoxFormat(order, top, separator)
    pipeline, grammar = grammars(name, boxes)
    so_far: Ids = ()
    while not so_far or so_far[-1] != pipeline.policy.eos_id:
        assert len(so_far) < 24
        so_far = (*so_far, draw.choice(sorted(grammar.allowed(so_far))))
    box = boxes.read(pipeline.text(so_far), 300, 200)
    assert box is not None and (box[2] - box[0]) * (box[3] - box[1]) > 0


@pytest.mark.parametrize("name", ["ours", "gpt2"])
@settings(deadline=None, max_examples=60)
@given(st.sampled_from([63, 500]), st.sampled_from(SEPARATORS), st.data())
def test_every_box_as_it_is_trained_is_a_way_along_the_grammar(
    grammars: Grammars, name: str, top: int, separator: str, data: st.DataObject
) -> None:
    boxes = BoxFormat(ORDERS[0], top, separator)
    pipeline, grammar = grammars(name, boxes)
    low = [data.draw(st.integers(0, top - 1)) for _ in range(2)]
    high = [data.draw(st.integers(number + 1, top)) for number in low]
    ids = (*box_ids(pipeline, separator.join(map(str, low + high))), pipeline.policy.eos_id)
    assert all(token in grammar.allowed(ids[:place]) for place, token in enumerate(ids))


def test_the_like_of_gpt2_merges_digits(grammars: Grammars) -> None:
    """Else the two tests above show less than they say."""
    pipeline, grammar = grammars("gpt2", BoxFormat())
    lengths = {len(ids) for ids in grammar.numbers[0]}
    assert len(lengths) > 1 and min(lengths) == 1
    ours, _ = grammars("ours", BoxFormat())
    assert len(box_ids(ours, "485")) == 4 and len(pipeline.ids(" 485")) < 4


@pytest.mark.parametrize("name", ["ours", "gpt2"])
def test_greedy_decoding_is_the_argmax_of_full_passes(grammars: Grammars, name: str) -> None:
    pipeline, _ = grammars(name, BoxFormat())
    decoder, images = a_decoder(pipeline), memory(3)
    prefixes: list[Ids] = [(5,), (), (9, 8, 7)]
    together = greedy(decoder, images, prefixes, pipeline)
    for row, prefix in enumerate(prefixes):
        text = list(prefix)
        while len(text) < decoder.length:
            inputs = torch.tensor([[pipeline.policy.pad_id, *text]])
            places, none = torch.arange(inputs.shape[1])[None], torch.zeros_like(inputs)
            with torch.no_grad():
                state = decoder(inputs, places, none, none.bool(), images[row : row + 1])
            text.append(int(decoder.vocabulary(state[:, -1]).argmax()))
            if text[-1] == pipeline.policy.eos_id:
                text.pop()
                break
        assert together[row] == tuple(text[len(prefix) :])


def test_greedy_stops_at_eos_and_leaves_it_out(grammars: Grammars) -> None:
    pipeline, _ = grammars("ours", BoxFormat())
    decoder = a_decoder(pipeline)
    with torch.no_grad():
        decoder.vocabulary.bias[pipeline.policy.eos_id] = 1e4
    assert greedy(decoder, memory(2), [(5,), (6, 7)], pipeline) == [(), ()]


def test_a_prefix_that_fills_the_row_leaves_nothing_to_say(grammars: Grammars) -> None:
    pipeline, _ = grammars("ours", BoxFormat())
    decoder = a_decoder(pipeline)
    full = tuple([5] * decoder.length)
    assert greedy(decoder, memory(1), [full], pipeline) == [()]


@pytest.mark.parametrize("name", ["ours", "gpt2"])
@pytest.mark.parametrize("order", ORDERS)
def test_a_decoder_that_knows_nothing_still_writes_boxes(grammars: Grammars, name: str, order: str) -> None:
    boxes = BoxFormat(order, 500)
    pipeline, grammar = grammars(name, boxes)
    prefixes = [
        referring_prefix(pipeline, phrase) for phrase in ("a red apple", "fox", "the green box on the left", "")
    ]
    written = greedy(a_decoder(pipeline), memory(4), prefixes, pipeline, grammar)
    assert all(boxes.read(pipeline.text(ids), 300, 200) is not None for ids in written)
