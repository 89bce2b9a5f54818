"""The large losses: their slopes are autograd's, in float64, and their values are those of other libraries."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import open_clip.loss
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import SiglipModel

from opensiglip.losses import cross_entropy, fused, pairwise
from opensiglip.losses.cross_entropy import linear_cross_entropy
from opensiglip.losses.pairwise import sigmoid_loss, softmax_loss
from opensiglip.models.model import Model
from opensiglip.models.sizes import Architecture, Shape
from opensiglip.objectives.contrastive import Sigmoid
from opensiglip.training.learner import Learner, denominators

EXACT = 1e-12  # of numbers around 1 in float64
quick = settings(deadline=None, max_examples=40)


def plain_sigmoid(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    bias: Tensor,
    valid: Tensor,
    group: Tensor | None = None,
    *,
    multi_positive: bool = False,
) -> Tensor:
    """SigLIP's equation, word by word, over the examples that have a text."""
    logits = scale * rows[valid] @ columns[valid].T + bias
    same, weight = positives(logits, group if group is None else group[valid], multi_positive)
    return -(weight * F.logsigmoid(logits) + ~same * F.logsigmoid(-logits)).sum()


def plain_softmax(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    valid: Tensor,
    group: Tensor | None = None,
    *,
    multi_positive: bool = False,
) -> Tensor:
    """CLIP's pseudo-code (Fig. 3), summed, over the examples that have a text."""
    logits = scale * rows[valid] @ columns[valid].T
    same, weight = positives(logits, group if group is None else group[valid], multi_positive)
    logits = logits.masked_fill(same & (weight == 0), -torch.inf)
    logs = logits.log_softmax(1), logits.log_softmax(0)
    return -sum(torch.where(weight > 0, weight * log, 0.0).sum() for log in logs) / 2


def positives(logits: Tensor, group: Tensor | None, multi_positive: bool) -> tuple[Tensor, Tensor]:
    """[B, B] which pairs are no negatives, and the weight of each as a positive."""
    own = torch.eye(len(logits), dtype=logits.dtype)
    same = own > 0 if group is None else group[:, None] == group
    return same, same / same.sum(1, keepdim=True).to(logits.dtype) if multi_positive else own


def plain_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    return (weights * F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="none")).sum()


def pairs(seed: int, count: int, width: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """rows, columns, scale, bias, valid."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (F.normalize(torch.randn(count, width, generator=generator, dtype=dtype), dim=-1) for _ in range(2))
    scale, bias = torch.tensor([7.0], dtype=dtype), torch.tensor([-2.0], dtype=dtype)
    return [rows, columns, scale, bias, torch.rand(count, generator=generator) < 0.8]


def tokens(seed: int, count: int, width: int, vocabulary: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """hidden, weight, bias, targets, weights."""
    generator = torch.Generator().manual_seed(seed)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=dtype)
        for shape in ((count, width), (vocabulary, width), (vocabulary,))
    )
    targets = torch.randint(vocabulary, (count,), generator=generator)
    return [hidden, weight, bias, targets, torch.rand(count, generator=generator, dtype=dtype)]


def value_and_slopes(
    loss: Callable[..., Tensor], arguments: Sequence[Tensor], differentiable: int
) -> tuple[Tensor, ...]:
    """The loss, and the gradients of three times the loss."""
    leaves = [x.clone().requires_grad_() for x in arguments[:differentiable]]
    value = loss(*leaves, *arguments[differentiable:])
    return value.detach(), *torch.autograd.grad(3 * value, leaves)


def assert_same(ours: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float) -> None:
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


@quick
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 5), st.integers(1, 4))
def test_the_tiled_sigmoid_and_its_slopes_are_autograds(seed: int, count: int, width: int, side: int) -> None:
    arguments = pairs(seed, count, width)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            fused, "CPU", fused.CPU._replace(tile=8 * side**2)
        )  # tiles of `side`, which need not divide `count`
        ours = value_and_slopes(sigmoid_loss, arguments, 4)
    assert_same(ours, value_and_slopes(plain_sigmoid, arguments, 4), EXACT)


@quick
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 5), st.integers(1, 4))
def test_the_tiled_softmax_and_its_slopes_are_autograds(seed: int, count: int, width: int, side: int) -> None:
    rows, columns, scale, _, valid = pairs(seed, count, width)
    arguments = [rows, columns, scale, valid]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "CPU", fused.CPU._replace(tile=8 * side**2))
        ours = value_and_slopes(softmax_loss, arguments, 3)
    assert_same(ours, value_and_slopes(plain_softmax, arguments, 3), EXACT)


@pytest.mark.parametrize("count", [1, 2050])
def test_in_float32_the_pairwise_losses_are_autograds_to_1e5(count: int) -> None:
    """Also past the tile's real size; means over the rows, as they are descended."""
    rows, columns, scale, bias, valid = pairs(6, count, 32, torch.float32)

    def mean(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *given: loss(*given) / count

    for ours, plain, arguments in (
        (sigmoid_loss, plain_sigmoid, [rows, columns, scale, bias, valid]),
        (softmax_loss, plain_softmax, [rows, columns, scale, valid]),
    ):
        differentiable = len(arguments) - 1
        expected = value_and_slopes(mean(plain), arguments, differentiable)
        assert_same(value_and_slopes(mean(ours), arguments, differentiable), expected, 1e-5)


def test_softmax_sums_far_apart_neither_overflow_nor_vanish() -> None:
    """Logits from -10,000 to 10,000: e to that power has no float."""
    rows, columns, _, _, _ = pairs(7, 6, 4, torch.float32)
    arguments = [rows, columns, torch.tensor([1e4]), torch.ones(6, dtype=torch.bool)]
    ours = value_and_slopes(softmax_loss, arguments, 3)
    assert all(x.isfinite().all() for x in ours)
    assert_same(ours, value_and_slopes(plain_softmax, arguments, 3), 1e-5)


@quick
@given(st.integers(0, 10**6), st.integers(0, 9), st.integers(1, 5), st.integers(1, 8), st.integers(1, 4))
def test_the_chunked_cross_entropy_and_its_slopes_are_autograds(
    seed: int, count: int, width: int, vocabulary: int, chunk: int
) -> None:
    arguments = tokens(seed, count, width, vocabulary)
    with pytest.MonkeyPatch.context() as patch:
        row = 8 * vocabulary  # bytes
        pieces = fused.CPU._replace(block=row * chunk, tokens=1, strip=row * max(1, chunk // 2))
        patch.setattr(fused, "CPU", pieces)
        ours = value_and_slopes(linear_cross_entropy, arguments, 3)
    assert_same(ours, value_and_slopes(plain_cross_entropy, arguments, 3), EXACT)


@quick
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 4), st.integers(1, 8), st.integers(1, 4))
def test_several_targets_of_a_row_are_that_row_several_times(
    seed: int, count: int, several: int, vocabulary: int, chunk: int
) -> None:
    hidden, weight, bias, targets, weights = tokens(seed, count * several, 3, vocabulary)
    once = [hidden[::several], weight, bias, targets.view(count, several), weights.view(count, several)]

    def plain(hidden: Tensor, *others: Tensor) -> Tensor:
        return plain_cross_entropy(hidden.repeat_interleave(several, 0), *others[:2], targets, weights)

    with pytest.MonkeyPatch.context() as patch:
        row = 8 * vocabulary  # bytes
        patch.setattr(fused, "CPU", fused.CPU._replace(block=row * chunk, tokens=1, strip=row * max(1, chunk // 2)))
        ours = value_and_slopes(linear_cross_entropy, once, 3)
    assert_same(ours, value_and_slopes(plain, once, 3), EXACT)


def test_without_tokens_the_loss_is_zero_with_zero_slopes() -> None:
    loss, *slopes = value_and_slopes(linear_cross_entropy, tokens(0, 0, 4, 5), 3)
    assert loss == 0 and [tuple(x.shape) for x in slopes] == [(0, 4), (5, 4), (5,)]
    assert not any(x.any() for x in slopes)


def test_an_example_without_a_text_is_neither_positive_nor_negative() -> None:
    rows, columns, scale, bias, _ = pairs(0, 6, 8)
    valid = torch.tensor([True, False, True, True, False, True])
    loss, *slopes = value_and_slopes(sigmoid_loss, [rows, columns, scale, bias, valid], 4)
    other = torch.where(valid[:, None], columns, 5.0), torch.where(valid[:, None], rows, -5.0)
    assert_same([loss], [sigmoid_loss(other[1], other[0], scale, bias, valid)], EXACT)
    assert not slopes[0][~valid].any() and not slopes[1][~valid].any()
    no = torch.zeros(6, dtype=torch.bool)
    assert not any(x.any() for x in value_and_slopes(sigmoid_loss, [rows, columns, scale, bias, no], 4))
    assert not any(x.any() for x in value_and_slopes(softmax_loss, [rows, columns, scale, no], 3))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_pairwise_losses_are_open_clips(count: int) -> None:
    rows, columns, scale, bias, _ = pairs(1, count, 16, torch.float32)
    every = torch.ones(count, dtype=torch.bool)
    sigmoid, softmax = open_clip.loss.SigLipLoss(), open_clip.loss.ClipLoss()
    ours = sigmoid_loss(rows, columns, scale, bias, every), softmax_loss(rows, columns, scale, every)
    theirs = sigmoid(rows, columns, scale, bias), softmax(rows, columns, scale)
    assert_same([x / count for x in ours], theirs, 1e-6)


def test_the_sigmoid_loss_is_transformers() -> None:
    shape, length = Shape(16, 1, 32, 2), 8
    torch.manual_seed(0)
    model = Model.new(Architecture(16, 8, length, shape, text=shape), 32)
    batch = {
        "image": torch.randn(5, 3, 16, 16),
        "text": torch.randint(32, (5, length)),
        "has_text": torch.ones(5, dtype=torch.bool),
    }
    learner, host = Learner(model, [Sigmoid()]), model.host[0]
    assert isinstance(host, SiglipModel)
    ours = learner(batch, denominators(learner, [batch])).losses["loss"]
    theirs = host(input_ids=batch["text"], pixel_values=batch["image"], return_loss=True).loss
    torch.testing.assert_close(ours.float(), theirs, rtol=0, atol=1e-6)


def test_orthogonal_features_start_at_ten_plus_the_negatives_share() -> None:
    count = 8
    rows, columns = torch.eye(2 * count)[:count], torch.eye(2 * count)[count:]
    valid = torch.ones(count, dtype=torch.bool)
    start = sigmoid_loss(rows, columns, torch.tensor([10.0]), torch.tensor([-10.0]), valid) / count
    assert abs(start.item() - (10 + np.log1p(np.exp(-10)) * count)) < 1e-5


@pytest.mark.parametrize(
    "loss, arguments",
    [
        (sigmoid_loss, pairs(2, 9, 64, torch.float32)),
        (softmax_loss, [x for i, x in enumerate(pairs(2, 9, 64, torch.float32)) if i != 3]),
    ],
)
def test_a_pairwise_loss_has_the_same_bits_in_and_out_of_autocast(
    loss: Callable[..., Tensor], arguments: list[Tensor]
) -> None:
    differentiable = len(arguments) - 1
    outside = value_and_slopes(loss, arguments, differentiable)
    with torch.autocast("cpu", torch.bfloat16):
        inside = value_and_slopes(loss, arguments, differentiable)
        assert (arguments[0] @ arguments[1].T).dtype == torch.bfloat16, "autocast is on"
    assert all(torch.equal(x, y) for x, y in zip(outside, inside, strict=True))


def test_a_gradient_narrower_than_its_sum_is_added_in_parts() -> None:
    total, a, b = torch.ones(7, 3), torch.randn(7, 4).bfloat16(), torch.randn(4, 3).bfloat16()
    expected = 1 + (a @ b).float()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "CPU", fused.CPU._replace(strip=2 * 3 * 4))  # two rows at a time
        cross_entropy.add_product(total, a, b)
    torch.testing.assert_close(total, expected, rtol=0.02, atol=0.02)


def test_a_second_backward_is_an_error_and_no_wrong_gradient() -> None:
    rows, columns, scale, bias, valid = pairs(8, 4, 3)
    loss = sigmoid_loss(rows.requires_grad_(), columns, scale, bias, valid)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_cross_entropy_under_autocast_takes_products_in_its_type_and_sums_in_float32() -> None:
    arguments = tokens(3, 9, 64, 50, torch.float32)
    full = value_and_slopes(linear_cross_entropy, arguments, 3)
    with torch.autocast("cpu", torch.bfloat16):
        half = value_and_slopes(linear_cross_entropy, arguments, 3)
    assert half[0].dtype == torch.float32 and [x.dtype for x in half[1:]] == [torch.float32] * 3
    assert not torch.equal(full[0], half[0])
    for x, y in zip(half, full, strict=True):
        assert (x - y).norm() < 0.02 * y.norm()  # bfloat16 has 8 bits


@pytest.mark.parametrize(
    "loss, module, block, arguments",
    [
        (sigmoid_loss, pairwise, "sigmoid_block", pairs(4, 5, 4)),
        (linear_cross_entropy, cross_entropy, "cross_entropy_block", tokens(4, 5, 4, 6)),
    ],
)
def test_no_slopes_are_formed_without_gradients(
    loss: Callable[..., Tensor], module: Any, block: str, arguments: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, formed = getattr(module, block), []

    def watched(*given: Tensor | None, slopes: bool, **more: bool) -> tuple[Tensor, ...]:
        formed.append(slopes)
        return original(*given, slopes=slopes, **more)

    monkeypatch.setattr(module, block, watched)
    leaves = [x.requires_grad_() if x.is_floating_point() and i < 3 else x for i, x in enumerate(arguments)]
    with_slopes = loss(*leaves)
    with torch.no_grad():
        without = loss(*leaves)
    assert formed == [True, False]
    assert with_slopes.requires_grad and not without.requires_grad
    assert torch.equal(with_slopes.detach(), without)


def test_the_softmax_takes_one_turn_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, columns, scale, _, valid = pairs(4, 5, 4)
    loss = softmax_loss(rows.requires_grad_(), columns, scale, valid)
    monkeypatch.setattr(pairwise, "softmax_slopes", None)
    with torch.no_grad():
        assert torch.equal(softmax_loss(rows, columns, scale, valid), loss.detach())


@pytest.mark.parametrize(
    "operation, arguments",
    [
        (pairwise._ring_sigmoid, (*pairs(5, 4, 3, torch.float32), torch.tensor([3, 5, 3, 7]), True, True)),
        (
            pairwise._ring_softmax,
            (
                *(x for i, x in enumerate(pairs(5, 4, 3, torch.float32)) if i != 3),
                torch.tensor([3, 5, 3, 7]),
                True,
                True,
            ),
        ),
        (cross_entropy._linear_cross_entropy, (*tokens(5, 4, 3, 6, torch.float32), torch.float32, True)),
    ],
)
def test_the_operations_keep_torch_librarys_contract(operation: torch.library.CustomOpDef, arguments: tuple) -> None:
    differentiable = 4 if operation is pairwise._ring_sigmoid else 3
    leaves = tuple(x.requires_grad_() if i < differentiable else x for i, x in enumerate(arguments))
    # Not "test_aot_dispatch_dynamic": it reads the gradients that backward has scaled in place, which no caller sees;
    # tests/test_compile.py compares whole compiled steps instead.
    torch.library.opcheck(
        operation, leaves, test_utils=("test_schema", "test_autograd_registration", "test_faketensor")
    )
