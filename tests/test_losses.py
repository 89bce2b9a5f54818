"""The two large losses: their slopes are autograd's, in float64, and their values are those of other libraries."""

from collections.abc import Callable, Sequence

import numpy as np
import open_clip.loss
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import SiglipModel

from opensiglip import fused
from opensiglip.fused import linear_cross_entropy, sigmoid_loss
from opensiglip.models.model import Model
from opensiglip.models.sizes import Architecture, Shape
from opensiglip.objectives.contrastive import Sigmoid
from opensiglip.train.learner import Learner, denominators

EXACT = 1e-12  # of numbers around 1 in float64
quick = settings(deadline=None, max_examples=40)


def plain_sigmoid(rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor, valid: Tensor) -> Tensor:
    """SigLIP's equation, word by word, over the examples that have a text."""
    x, y = rows[valid], columns[valid]
    signs = 2 * torch.eye(len(x), dtype=x.dtype) - 1
    return -F.logsigmoid(signs * (scale * x @ y.T + bias)).sum()


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
def test_the_blocked_sigmoid_and_its_slopes_are_autograds(seed: int, count: int, width: int, side: int) -> None:
    arguments = pairs(seed, count, width)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "BLOCK_BYTES", 8 * side**2)  # blocks of `side`, which need not divide `count`
        ours = value_and_slopes(sigmoid_loss, arguments, 4)
    assert_same(ours, value_and_slopes(plain_sigmoid, arguments, 4), EXACT)


@quick
@given(st.integers(0, 10**6), st.integers(0, 9), st.integers(1, 5), st.integers(1, 8), st.integers(1, 4))
def test_the_chunked_cross_entropy_and_its_slopes_are_autograds(
    seed: int, count: int, width: int, vocabulary: int, chunk: int
) -> None:
    arguments = tokens(seed, count, width, vocabulary)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "BLOCK_BYTES", 8 * vocabulary * chunk)
        ours = value_and_slopes(linear_cross_entropy, arguments, 3)
    assert_same(ours, value_and_slopes(plain_cross_entropy, arguments, 3), EXACT)


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
    none = value_and_slopes(sigmoid_loss, [rows, columns, scale, bias, torch.zeros(6, dtype=torch.bool)], 4)
    assert not any(x.any() for x in none)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_sigmoid_is_open_clips(count: int) -> None:
    arguments = pairs(1, count, 16, torch.float32)
    arguments[-1] = torch.ones(count, dtype=torch.bool)
    theirs = open_clip.loss.SigLipLoss()(*arguments[:4])
    torch.testing.assert_close(sigmoid_loss(*arguments) / count, theirs, rtol=0, atol=1e-6)


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


def test_the_sigmoid_has_the_same_bits_in_and_out_of_autocast() -> None:
    arguments = pairs(2, 9, 64, torch.float32)
    outside = value_and_slopes(sigmoid_loss, arguments, 4)
    with torch.autocast("cpu", torch.bfloat16):
        inside = value_and_slopes(sigmoid_loss, arguments, 4)
        assert (arguments[0] @ arguments[1].T).dtype == torch.bfloat16, "autocast is on"
    assert all(torch.equal(x, y) for x, y in zip(outside, inside, strict=True))


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
    "loss, block, arguments",
    [
        (sigmoid_loss, "sigmoid_block", pairs(4, 5, 4)),
        (linear_cross_entropy, "cross_entropy_block", tokens(4, 5, 4, 6)),
    ],
)
def test_no_slopes_are_formed_without_gradients(
    loss: Callable[..., Tensor], block: str, arguments: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, formed = getattr(fused, block), []

    def watched(*given: Tensor, slopes: bool, **more: bool) -> tuple[Tensor, ...]:
        formed.append(slopes)
        return original(*given, slopes=slopes, **more)

    monkeypatch.setattr(fused, block, watched)
    leaves = [x.requires_grad_() if x.is_floating_point() and i < 3 else x for i, x in enumerate(arguments)]
    with_slopes = loss(*leaves)
    with torch.no_grad():
        without = loss(*leaves)
    assert formed == [True, False]
    assert with_slopes.requires_grad and not without.requires_grad
    assert torch.equal(with_slopes.detach(), without)


@pytest.mark.parametrize(
    "operation, arguments",
    [
        (fused._ring_sigmoid, (*pairs(5, 4, 3, torch.float32), True)),
        (fused._linear_cross_entropy, (*tokens(5, 4, 3, 6, torch.float32), torch.float32, True)),
    ],
)
def test_the_operations_keep_torch_librarys_contract(operation: torch.library.CustomOpDef, arguments: tuple) -> None:
    differentiable = 4 if operation is fused._ring_sigmoid else 3
    leaves = tuple(x.requires_grad_() if i < differentiable else x for i, x in enumerate(arguments))
    torch.library.opcheck(operation, leaves)
