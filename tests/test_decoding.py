"""Greedy decoding, beam search and sampling, and the grammar along which nothing but a box can be written."""

from collections.abc import Callable
from functools import cache
from random import Random
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prefixes import referring_prefix
from toys import like_gpt2, small_model

from opensiglip.data.boxes import ORDERS, SEPARATORS, BoxFormat
from opensiglip.data.fields.captions import Ids, box_ids
from opensiglip.data.text import TextPipeline, TextPolicy
from opensiglip.errors import UserError
from opensiglip.inference.box_grammar import BoxGrammar, State
from opensiglip.inference.generate import Decoding, beam_search, generate, sample
from opensiglip.models.coca import Multimodal
from opensiglip.models.decoder import Decoder
from opensiglip.models.model import Model
from opensiglip.models.pali import PaliDecoder


class Texts(NamedTuple):
    """What `Uncached` keeps in a cache's place."""

    memory: torch.Tensor
    valid: torch.Tensor | None
    rows: list[list[int]]  # the inputs so far

    def select(self, rows: torch.Tensor) -> "Texts":
        return Texts(
            self.memory[rows], None if self.valid is None else self.valid[rows], [list(self.rows[r]) for r in rows]
        )


class Uncached:
    """A decoder without a KV cache: each token is a full pass over the whole text."""

    def __init__(self, decoder: Any) -> None:
        self.decoder, self.length, self.vocabulary = decoder, decoder.length, decoder.vocabulary

    def start_cache(self, memory: torch.Tensor, owners: torch.Tensor, valid: torch.Tensor | None) -> Texts:
        return Texts(memory[owners], None if valid is None else valid[owners], [[] for _ in owners])

    def append(
        self, inputs: torch.Tensor, starts: torch.Tensor, cache: Texts, column: torch.Tensor | None = None
    ) -> torch.Tensor:
        ends = starts + (torch.zeros_like(starts) if column is None else column)
        for row, new, start, end in zip(cache.rows, inputs.tolist(), starts.tolist(), ends.tolist(), strict=True):
            row[start:] = new[: end - start + 1]
        width = max(map(len, cache.rows))
        whole = torch.tensor([row + [0] * (width - len(row)) for row in cache.rows])
        places, none = torch.arange(width).expand(len(whole), -1), torch.zeros_like(whole)
        return self.decoder(whole, places, none, none.bool(), cache.memory, cache.valid)[range(len(whole)), ends][
            :, None
        ]


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
        tokens = grammar.alphabet[grammar.constrain(logits, states).argmax(-1).numpy()].tolist()
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

    with pytest.raises(UserError, match="does not separate numbers"):
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
    together = generate(decoder, images, prefixes, pipeline)
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


@pytest.fixture(scope="module", params=["locca", "coca", "pali"])
def decoder(request: pytest.FixtureRequest, small: Any, pipeline: TextPipeline) -> Any:
    """One of each architecture, with a vocabulary that prefers some tokens."""
    torch.manual_seed(0)
    model = Model.new(small(request.param).architecture, len(pipeline)).eval()
    made = model.decoder or PaliDecoder(model.pali)  # type: ignore[arg-type]
    torch.nn.init.normal_(made.vocabulary.weight)
    made.vocabulary.bias.data[pipeline.policy.eos_id] = 4.0  # some texts end before the others
    return made


@pytest.mark.parametrize(
    "decoding",
    [Decoding(), Decoding(num_beams=3), Decoding(do_sample=True, top_p=0.9, seed=3), Decoding(max_new_tokens=2)],
)
@pytest.mark.parametrize("boxes", [False, True])
def test_the_cache_changes_nothing(decoder: Any, pipeline: TextPipeline, decoding: Decoding, boxes: bool) -> None:
    """Of prefixes of unlike lengths, two of one image, some image tokens padding."""
    images, owners = memory(3), [1, 0, 1, 2]
    valid = None if isinstance(decoder, Multimodal) else torch.arange(16).expand(3, -1) < torch.tensor([[16], [9], [3]])
    prefixes: list[Ids] = [(5,), (6, 7, 8), (9,), ()]
    grammar = BoxGrammar(pipeline, BoxFormat(top=63)) if boxes else None
    found, expected = (
        generate(either, images, prefixes, pipeline, decoding, grammar=grammar, owners=owners, valid=valid)
        for either in (decoder, Uncached(decoder))
    )
    assert found == expected and len(set(found)) > 1
    assert decoding.max_new_tokens is None or max(map(len, found)) == 2


def test_samples_follow_the_probabilities_that_are_left() -> None:
    logits = torch.tensor([0.5, 0.25, 0.15, 0.1]).log().expand(20_000, -1)

    def shares(**how: Any) -> list[float]:
        drawn = sample(logits, Decoding(do_sample=True, **how), torch.Generator().manual_seed(0))
        return (drawn.bincount(minlength=4) / len(drawn)).tolist()

    assert shares() == pytest.approx([0.5, 0.25, 0.15, 0.1], abs=0.015)
    assert shares(top_k=2) == pytest.approx([2 / 3, 1 / 3, 0, 0], abs=0.015)
    assert shares(top_p=0.7) == pytest.approx([2 / 3, 1 / 3, 0, 0], abs=0.015)  # the second reaches 0.7
    assert shares(top_p=0.01) == [1, 0, 0, 0]
    hot = torch.tensor([0.5, 0.25, 0.15, 0.1]).sqrt()
    assert shares(temperature=2.0) == pytest.approx((hot / hot.sum()).tolist(), abs=0.015)


def test_a_seed_repeats_a_sample_and_another_seed_does_not(decoder: Any, pipeline: TextPipeline) -> None:
    first, again, other = (
        generate(decoder, memory(3), [(5,)] * 3, pipeline, Decoding(do_sample=True, temperature=3.0, seed=seed))
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_phrases_of_one_image_share_what_was_read_of_it(grammars: Grammars) -> None:
    pipeline, grammar = grammars("ours", BoxFormat())
    decoder, images, owners = a_decoder(pipeline), memory(2), [1, 0, 1, 1]
    prefixes: list[Ids] = [(5,), (6, 7, 8), (9,), ()]
    for along in (None, grammar):
        shared = generate(decoder, images, prefixes, pipeline, grammar=along, owners=owners)
        assert shared == generate(decoder, images[owners], prefixes, pipeline, grammar=along)


@pytest.mark.parametrize("seed", range(3))
def test_a_wide_beam_finds_the_best_of_all_texts_and_the_narrowest_none_worse_than_greedy(seed: int) -> None:
    """Of five ids and texts of at most three, all 85 can be scored one by one."""
    vocabulary, length = 5, 3
    decoder = small_model(vocabulary=vocabulary, length=length, seed=seed).decoder
    assert decoder is not None
    pipeline = Tiny()
    images = memory(3)
    first = generate(decoder, images, [(), (), ()], pipeline)
    narrow, best = (beam_search(decoder, images, [(), (), ()], pipeline, width, count=3) for width in (1, 200))
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
        ranking = sorted(scores, key=lambda text: -scores[text])
        expected = ranking[0]
        assert best[row] == [tuple(t for t in text if t != pipeline.policy.eos_id) for text in ranking[:3]]
        greedily, narrowly = (
            scores[text if len(text) == length else (*text, pipeline.policy.eos_id)]
            for text in (first[row], narrow[row][0])
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
    for decoding in (Decoding(), Decoding(num_beams=4), Decoding(do_sample=True)):
        assert generate(decoder, memory(2), [(5,), (6, 7)], pipeline, decoding) == [(), ()]


def test_a_prefix_that_fills_the_row_leaves_nothing_to_say(grammars: Grammars) -> None:
    pipeline, _ = grammars("ours", BoxFormat())
    decoder = a_decoder(pipeline)
    full = tuple([5] * decoder.length)
    for decoding in (Decoding(), Decoding(num_beams=4)):
        both = generate(decoder, memory(2), [full, full[:-1]], pipeline, decoding)
        assert both[0] == () and len(both[1]) <= 1


@pytest.mark.parametrize("name", ["ours", "gpt2"])
@pytest.mark.parametrize("order", ORDERS)
def test_a_decoder_that_knows_nothing_still_writes_boxes(grammars: Grammars, name: str, order: str) -> None:
    boxes = BoxFormat(order, 500)
    pipeline, grammar = grammars(name, boxes)
    prefixes = [
        referring_prefix(pipeline, phrase) for phrase in ("a red apple", "fox", "the green box on the left", "")
    ]
    written = generate(a_decoder(pipeline), memory(4), prefixes, pipeline, grammar=grammar)
    assert all(boxes.read(pipeline.text(ids), 300, 200) is not None for ids in written)
