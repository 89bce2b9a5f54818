"""Greedy and beam search, and the grammar along which nothing but a box can be written."""

from collections.abc import Callable
from functools import cache
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import like_gpt2, small_model

from opensiglip.data.boxes import ORDERS, SEPARATORS, BoxFormat
from opensiglip.data.fields.captions import Ids, box_ids, referring_prefix
from opensiglip.data.text import TextPipeline, TextPolicy
from opensiglip.errors import UserError
from opensiglip.inference.box_grammar import BoxGrammar, State
from opensiglip.inference.generate import beam, choose, greedy
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


def allowed(grammar: BoxGrammar, state: State) -> list[int]:
    return grammar.alphabet[grammar.allowed([state])[0]].tolist()


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
    state = State()
    while (token := draw.choice(allowed(grammar, state))) != pipeline.policy.eos_id:
        state, so_far = grammar.after(state, token), (*so_far, token)
        assert len(so_far) < 24
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
    state = State()
    for token in ids[:-1]:
        assert token in allowed(grammar, state)
        state = grammar.after(state, token)
    assert ids[-1] in allowed(grammar, state)


@pytest.mark.parametrize("name", ["ours", "gpt2"])
@pytest.mark.parametrize("order", ORDERS)
def test_ten_thousand_random_streams_of_logits_write_ten_thousand_boxes(
    grammars: Grammars, name: str, order: str
) -> None:
    boxes, streams = BoxFormat(order, 63, ", "), 2500  # a quarter of them in each of four ways
    pipeline, grammar = grammars(name, boxes)
    rng = np.random.default_rng([len(name), ORDERS.index(order)])
    texts: list[list[int]] = [[] for _ in range(streams)]
    states, live = [State()] * streams, list(range(streams))
    for _ in range(24):
        logits = torch.from_numpy(rng.standard_normal((len(live), len(grammar.alphabet)), np.float32))
        tokens = choose(logits, states, grammar)
        going = [place for place, token in enumerate(tokens) if token != pipeline.policy.eos_id]
        for place in going:
            texts[live[place]].append(tokens[place])
        states = [grammar.after(states[place], tokens[place]) for place in going]
        live = [live[place] for place in going]
        if not live:
            break
    assert not live
    found = [boxes.read(pipeline.text(text), 300, 200) for text in texts]
    assert all(box is not None and box[0] < box[2] <= 300 and box[1] < box[3] <= 200 for box in found)
    assert len(set(found)) > streams / 2, "else one box would do"


def test_a_tokenizer_that_writes_all_numbers_alike_has_no_grammar(pipeline: TextPipeline) -> None:
    class Unknown(TextPipeline):
        def ids(self, text: str) -> Ids:
            return (3,)

    with pytest.raises(UserError, match="does not tell numbers apart"):
        BoxGrammar(Unknown(pipeline.tokenizer, pipeline.policy), BoxFormat())


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


def test_phrases_of_one_image_share_what_was_read_of_it(grammars: Grammars) -> None:
    pipeline, grammar = grammars("ours", BoxFormat())
    decoder, images, owners = a_decoder(pipeline), memory(2), [1, 0, 1, 1]
    prefixes: list[Ids] = [(5,), (6, 7, 8), (9,), ()]
    for along in (None, grammar):
        shared = greedy(decoder, images, prefixes, pipeline, along, owners=owners)
        assert shared == greedy(decoder, images[owners], prefixes, pipeline, along)


@pytest.mark.parametrize("seed", range(3))
def test_a_wide_beam_finds_the_best_of_all_texts_and_the_narrowest_none_worse_than_greedy(seed: int) -> None:
    """Of five ids and texts of at most three, all 85 can be scored one by one."""
    vocabulary, length = 5, 3
    decoder = small_model(vocabulary=vocabulary, length=length, seed=seed).decoder
    assert decoder is not None
    pipeline = Tiny()
    images = memory(3)
    first = greedy(decoder, images, [(), (), ()], pipeline)
    narrow, best = (beam(decoder, images, [(), (), ()], pipeline, width) for width in (1, 200))
    for row in range(3):
        scores: dict[Ids, float] = {}
        front: list[Ids] = [()]
        while front:
            text = front.pop()
            for token in range(vocabulary):
                longer = (*text, token)
                if token == pipeline.policy.eos_id or len(longer) == length:
                    scores[longer] = mean_log_likelihood(decoder, images[row : row + 1], longer)
                else:
                    front.append(longer)
        expected = max(scores, key=lambda text: scores[text])
        assert best[row] == tuple(token for token in expected if token != pipeline.policy.eos_id)
        greedily, narrowly = (
            scores[text if len(text) == length else (*text, pipeline.policy.eos_id)]
            for text in (first[row], narrow[row])
        )
        assert greedily <= narrowly <= scores[expected]


class Tiny(TextPipeline):
    """Ids without words."""

    def __init__(self) -> None:
        self.policy = TextPolicy(length=3)


def mean_log_likelihood(decoder: Decoder, image: torch.Tensor, text: Ids) -> float:
    inputs = torch.tensor([[0, *text[:-1]]])
    places, none = torch.arange(len(text))[None], torch.zeros_like(inputs)
    with torch.no_grad():
        logits = decoder.vocabulary(decoder(inputs, places, none, none.bool(), image)[0]).log_softmax(-1)
    return float(logits.gather(1, torch.tensor(text)[:, None]).mean())


def test_greedy_stops_at_eos_and_leaves_it_out(grammars: Grammars) -> None:
    pipeline, _ = grammars("ours", BoxFormat())
    decoder = a_decoder(pipeline)
    with torch.no_grad():
        decoder.vocabulary.bias[pipeline.policy.eos_id] = 1e4
    assert greedy(decoder, memory(2), [(5,), (6, 7)], pipeline) == [(), ()]
    assert beam(decoder, memory(2), [(5,), (6, 7)], pipeline) == [(), ()]


def test_a_prefix_that_fills_the_row_leaves_nothing_to_say(grammars: Grammars) -> None:
    pipeline, _ = grammars("ours", BoxFormat())
    decoder = a_decoder(pipeline)
    full = tuple([5] * decoder.length)
    assert greedy(decoder, memory(1), [full], pipeline) == [()] == beam(decoder, memory(1), [full], pipeline)


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
