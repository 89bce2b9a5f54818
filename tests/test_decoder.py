"""The decoder: what a token may see, that packing changes nothing, and where the loss starts."""

import copy
import math
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from toys import SHAPE, small_model

from opensiglip.data.fields.captions import Target, pack
from opensiglip.models.decoder import Decoder
from opensiglip.models.model import Model
from opensiglip.models.sizes import Architecture
from opensiglip.objectives.captioning import Caption
from opensiglip.training.learner import Learner, denominators
from opensiglip.types import Batch

VOCABULARY, LENGTH, EOS = 96, 12, 1
THREE = [
    Target((7, 8), (11, 12, 13, EOS), parallel=True),
    Target((9, 8), (21, 22, EOS)),
    Target((5,), (31, 32, 33, 34, EOS)),
]


def packed(*rows: list[Target]) -> Batch:
    return pack(rows, length=LENGTH, pad_id=0, mask_id=VOCABULARY)


def hidden(decoder: Decoder, batch: Batch, memory: Tensor, valid: Tensor | None = None) -> Tensor:
    row = [batch[field] for field in ("inputs", "positions", "segments", "full")]
    with torch.no_grad():
        return decoder(*row, memory, valid)


@cache
def a_decoder() -> Decoder:
    decoder = small_model(vocabulary=VOCABULARY, length=LENGTH).decoder
    assert decoder is not None
    return decoder


def memory(rows: int) -> Tensor:
    return torch.randn(rows, 16, SHAPE.width, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("parallel", [False, True])
def test_the_first_captioning_loss_is_the_log_of_the_vocabulary(parallel: bool) -> None:
    torch.manual_seed(0)
    model = Model.new(Architecture(32, 8, LENGTH, SHAPE, decoder=SHAPE), VOCABULARY)
    batch = packed([Target((), (3, 4, EOS), parallel)], [Target((6,), (5, 4, 9, 8, EOS), parallel)])
    learner = Learner(model, [Caption()])
    loss = learner(batch | {"image": torch.randn(2, 3, 32, 32)}, denominators(learner, [batch])).losses["caption"]
    assert abs(loss.item() - math.log(VOCABULARY)) < 1e-3


def test_the_decoder_starts_as_flax_starts_it() -> None:
    decoder: Any = Decoder(SHAPE, 4000, 64, SHAPE.width, bias=True)
    assert abs(decoder.embedding.weight.std().item() - 1) < 0.01
    assert abs(decoder.position.std().item() - SHAPE.width**-0.5) < 0.02
    query = torch.cat([block.self_attention.query.weight for block in decoder.blocks])
    assert abs(query.std().item() * SHAPE.width**0.5 - 1) < 0.05  # lecun-normal, its deviation restored after the cut
    up = decoder.blocks[0].up.weight
    bound = math.sqrt(6 / sum(up.shape))
    assert 0.95 * bound < up.abs().max().item() <= bound
    assert not decoder.vocabulary.weight.any() and not decoder.vocabulary.bias.any()
    assert 0 < decoder.blocks[0].up.bias.abs().max().item() < 1e-5


@pytest.mark.parametrize("checkpointing", [False, True])
def test_padding_left_out_changes_nothing_at_real_tokens(checkpointing: bool) -> None:
    decoder, batch = copy.deepcopy(a_decoder()), packed(THREE, [], THREE[1:2], THREE[:1])
    decoder.checkpointing = checkpointing
    row = [batch[field] for field in ("inputs", "positions", "segments", "full")]
    image, valid = memory(4).requires_grad_(), torch.arange(16) < torch.tensor([[16], [9], [1], [16]])
    pull = torch.randn(len(batch["real"]), SHAPE.width, generator=torch.Generator().manual_seed(1))
    states, slopes = [], []
    for real in (None, batch["real"]):
        states.append(decoder(*row, image, valid, real))
        slopes.append(
            torch.autograd.grad(states[-1].flatten(0, 1)[batch["real"]], (image, *decoder.blocks.parameters()), pull)
        )
    padded, alone = states
    torch.testing.assert_close(
        alone.flatten(0, 1)[batch["real"]], padded.flatten(0, 1)[batch["real"]], atol=1e-5, rtol=0
    )
    assert not alone[batch["segments"] < 0].any() and len(batch["real"]) < batch["segments"].numel()
    for ours, theirs in zip(*slopes, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_one_column_is_what_all_of_them_have_there_and_all_are_cached() -> None:
    decoder, image = a_decoder(), memory(3)
    inputs = torch.randint(2, VOCABULARY, (3, 5), generator=torch.Generator().manual_seed(0))
    starts, column, rows = torch.zeros(3, dtype=torch.int64), torch.tensor([4, 1, 2]), torch.arange(3)
    with torch.no_grad():
        caches = [decoder.start_cache(image) for _ in range(2)]
        every = decoder.append(inputs, starts, caches[0])[rows, column]
        some = decoder.append(inputs, starts, caches[1], column)[:, 0]
        torch.testing.assert_close(some, every, atol=1e-5, rtol=0)
        after = [decoder.append(inputs[:, :1], column + 1, cache) for cache in caches]
    torch.testing.assert_close(after[0], after[1], atol=1e-5, rtol=0)


def test_an_autoregressive_logit_does_not_see_later_tokens() -> None:
    decoder, image = a_decoder(), memory(1)
    before = hidden(decoder, packed([Target((), (3, 4, 5, 6, 7, EOS))]), image)
    after = hidden(decoder, packed([Target((), (3, 4, 50, 60, 70, EOS))]), image)
    # The third label, 5, is the input of the fourth place: places 0 to 2 may not notice.
    torch.testing.assert_close(before[:, :3], after[:, :3], rtol=0, atol=1e-6)
    assert (before[:, 3:6] - after[:, 3:6]).abs().amax(-1).min() > 1e-3


def test_a_parallel_token_sees_its_whole_row_and_nothing_of_its_labels() -> None:
    decoder, image = a_decoder(), memory(1)
    first = hidden(decoder, packed([Target((7, 8), (3, 4, EOS), True)]), image)
    labels = hidden(decoder, packed([Target((7, 8), (30, 40, 50, EOS), True)]), image)
    prefix = hidden(decoder, packed([Target((7, 9), (3, 4, EOS), True)]), image)
    assert torch.equal(first, labels)
    assert (first - prefix)[0, :LENGTH].abs().amax(-1).min() > 1e-4, "also the places before it"


def test_a_full_key_is_seen_by_its_whole_segment_and_its_query_sees_no_more() -> None:
    """A prefix-LM: the prefix sees all of itself, and nothing of what follows."""
    decoder, image = a_decoder(), memory(1)

    def states(*ids: int) -> Tensor:
        batch = packed([Target((), (*ids, 9, EOS))])
        batch["full"][0, 1:4] = True  # behind the start token: inputs 1 to 3 are the prefix
        return hidden(decoder, batch, image)

    first = states(3, 4, 5, 6)
    torch.testing.assert_close(states(3, 4, 5, 60)[:, :4], first[:, :4], rtol=0, atol=1e-6)
    assert (states(3, 4, 50, 6) - first)[:, :4].abs().amax(-1).min() > 1e-4


def test_a_packed_row_is_its_texts_decoded_one_by_one() -> None:
    decoder, image = a_decoder(), memory(1)
    together = hidden(decoder, packed(THREE), image)
    at = 0
    for target in THREE:
        size = LENGTH if target.parallel else len(target.prefix) + len(target.target)
        alone = hidden(decoder, packed([target]), image)
        torch.testing.assert_close(together[:, at : at + size], alone[:, :size], rtol=0, atol=2e-6)
        at += size


def test_the_loss_of_packed_rows_is_the_mean_over_their_texts() -> None:
    learner = Learner(small_model(vocabulary=VOCABULARY, length=LENGTH), [Caption()]).double()
    image = torch.randn(1, 3, 32, 32, dtype=torch.float64)

    def loss(*row: Target) -> float:
        batch = packed(list(row))
        return learner(batch | {"image": image}, denominators(learner, [batch])).losses["caption"].item()

    assert abs(loss(*THREE) - sum(loss(one) for one in THREE) / 3) < 1e-9


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.lists(st.integers(2, VOCABULARY - 1), min_size=1, max_size=8), min_size=1, max_size=3), st.booleans()
)
def test_a_text_does_not_see_the_other_texts_of_its_row(others: list[list[int]], parallel: bool) -> None:
    decoder, image = a_decoder(), memory(1)
    mine = Target((7, 8), (3, 4, 5, EOS), parallel)
    size = LENGTH if parallel else 6
    alone = hidden(decoder, packed([mine]), image)
    row = [*(Target((9,), (*ids, EOS), parallel=index == 0) for index, ids in enumerate(others)), mine]
    batch = packed(row)
    at = int((batch["segments"][0] == len(others)).nonzero()[0])
    torch.testing.assert_close(hidden(decoder, batch, image)[:, at : at + size], alone[:, :size], rtol=0, atol=2e-6)


def test_image_tokens_that_are_padding_change_nothing() -> None:
    decoder, image = a_decoder(), memory(2)
    batch = packed(THREE, THREE[1:])
    longer = torch.cat([image, torch.full((2, 5, SHAPE.width), 100.0)], 1)
    valid = torch.arange(21).expand(2, -1) < 16
    plain = hidden(decoder, batch, image)
    torch.testing.assert_close(hidden(decoder, batch, longer, valid), plain, rtol=0, atol=2e-6)
    assert (hidden(decoder, batch, longer) - plain).abs().max() > 1e-2, "unmasked, they would"


@pytest.mark.parametrize("bias", [False, True])
def test_positions_of_image_tokens_are_added_to_them(bias: bool) -> None:
    """In training, in decoding, and for the gradient, as if tokens had come with them."""
    torch.manual_seed(0)
    placed = Decoder(SHAPE, VOCABULARY, LENGTH, memory(1).shape[-1], bias=bias, image_positions=16)
    torch.nn.init.normal_(placed.vocabulary.weight)
    for name, parameter in placed.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    plain = Decoder(SHAPE, VOCABULARY, LENGTH, memory(1).shape[-1], bias=bias)
    plain.load_state_dict({k: v for k, v in placed.state_dict().items() if k != "image_position"})
    position, row = placed.image_position, packed([Target((), (3, 4, EOS))], [Target((), (5, EOS))])
    inputs = [row[field] for field in ("inputs", "positions", "segments", "full")]
    slopes: list[Tensor] = []
    assert position is not None and float(position.detach().square().mean()) == pytest.approx(1)
    for decoder, image in ((placed, memory(2)), (plain, memory(2) + position)):
        (slope,) = torch.autograd.grad(decoder(*inputs, image).square().sum(), position)
        slopes.append(slope)
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-4, atol=1e-4)
    ids, starts = torch.tensor([[0, 3, 4], [0, 5, 6]]), torch.zeros(2, dtype=torch.int64)
    with torch.no_grad():
        caches = placed.start_cache(memory(2)), plain.start_cache(memory(2) + position)
        found, wanted = (d.append(ids, starts, c) for d, c in zip((placed, plain), caches, strict=True))
        assert (found - plain.append(ids, starts, plain.start_cache(memory(2)))).abs().max() > 0.01
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("padded", [False, True])
def test_the_cache_gives_the_logits_of_the_whole_row(padded: bool) -> None:
    """Rows that stand at different places, some leaving, against one packed forward pass of each whole text."""
    decoder, image, rng = a_decoder(), memory(4), torch.Generator().manual_seed(5)
    valid = torch.arange(16).expand(4, -1) < torch.tensor([[16], [9], [3], [16]]) if padded else None
    texts = torch.randint(2, VOCABULARY, (4, LENGTH - 1), generator=rng)
    inputs = torch.cat([torch.zeros(4, 1, dtype=torch.int64), texts], 1)
    places, none = torch.arange(LENGTH).expand(4, -1), torch.zeros_like(inputs)
    with torch.no_grad():
        whole = decoder.vocabulary(decoder(inputs, places, none, none.bool(), image, valid))
        cache, starts = decoder.start_cache(image, valid=valid), torch.zeros(4, dtype=torch.int64)
        read = torch.tensor([1, 4, 6, 2])  # inputs that each row begins with
        first = inputs[:, :6].masked_fill(torch.arange(6) >= read[:, None], 77)  # what stands behind them is padding
        logits = decoder.vocabulary(decoder.append(first, starts, cache))
        for row in range(4):
            torch.testing.assert_close(logits[row, : read[row]], whole[row, : read[row]], rtol=0, atol=1e-5)
        live = torch.arange(4)
        for step in range(LENGTH):
            live_now = (read + step < LENGTH).nonzero()[:, 0]
            if not len(live_now):
                break
            cache = cache.select(torch.searchsorted(live, live_now))
            live, at = live_now, read[live_now] + step
            logits = decoder.vocabulary(decoder.append(inputs[live, at][:, None], at, cache)[:, 0])
            torch.testing.assert_close(logits, whole[live, at], rtol=0, atol=1e-5)
    assert step > 8


def test_logits_among_some_ids_are_those_of_all() -> None:
    decoder, state = a_decoder(), torch.randn(3, SHAPE.width, generator=torch.Generator().manual_seed(2))
    some = torch.tensor([7, 0, 95])
    torch.testing.assert_close(decoder.vocabulary(state, among=some), decoder.vocabulary(state)[:, some])


def test_every_text_reads_the_image() -> None:
    decoder, batch = a_decoder(), packed(THREE)
    change = hidden(decoder, batch, memory(1)) - hidden(decoder, batch, -memory(1))
    assert change[batch["segments"] >= 0].abs().amax(-1).min() > 1e-3


def test_dropout_leaves_out_in_training_alone_and_the_same_when_activations_are_formed_again() -> None:
    torch.manual_seed(0)
    some = Decoder(SHAPE, VOCABULARY, LENGTH, memory(1).shape[-1], dropout=0.5)
    none = Decoder(SHAPE, VOCABULARY, LENGTH, memory(1).shape[-1])
    none.load_state_dict(some.state_dict())
    batch = packed([Target((), (3, 4, EOS))])
    inputs = [batch[field] for field in ("inputs", "positions", "segments", "full")]
    assert torch.equal(some.eval()(*inputs, memory(1)), none(*inputs, memory(1))), "served, it leaves out nothing"
    some.train()
    states, slopes = [], []
    for seed, again in ((1, False), (1, True), (2, False)):
        some.checkpointing = again
        torch.manual_seed(seed)
        states.append(some(*inputs, memory(1)))
        slopes.append(torch.autograd.grad(states[-1].square().sum(), some.blocks[0].get_parameter("up.weight"))[0])
    assert (states[0] - none(*inputs, memory(1))).abs().max() > 0.1
    assert (states[0] - states[2]).abs().max() > 0.1, "another seed leaves out others"
    assert torch.allclose(slopes[0], slopes[1], atol=1e-6)
