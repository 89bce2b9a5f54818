"""Examples of one image are no negatives of each other: by hand, by autograd, in parts and through the objectives."""

import math
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from conftest import Small, collate, draw, exact
from hypothesis import given
from hypothesis import strategies as st
from test_losses import EXACT, assert_same, pairs, plain_sigmoid, plain_softmax, quick, value_and_slopes
from torch import Tensor

from opensiglip.bridge.loss import SigLIP2Loss
from opensiglip.data.fields.field import Visit
from opensiglip.data.text import TextPipeline
from opensiglip.losses import fused
from opensiglip.losses.pairwise import sigmoid_loss, softmax_loss
from opensiglip.objectives.contrastive import Sigmoid, Softmax
from opensiglip.training.accumulate import accumulate
from opensiglip.training.learner import Learner, denominators

LOSSES = {sigmoid_loss: plain_sigmoid, softmax_loss: plain_softmax}

# e to the logits; examples 0 and 2 are of one image.
GRADED = torch.tensor([[4, 2, 2, 1], [1, 3, 1, 2], [3, 1, 4, 1], [1, 2, 1, 6]], dtype=torch.float64)
GROUP = torch.tensor([7, 5, 7, 9])
NEGATIVES = (3 * 2) * (2 * 2 * 3) * (2 * 2) * (2 * 3 * 2)  # 1 + e^u of every pair of two images


def arguments(loss: Callable[..., Tensor], seed: int, count: int) -> list[Tensor]:
    """What the loss takes, without the group."""
    return [x for i, x in enumerate(pairs(seed, count, 3)) if loss is sigmoid_loss or i != 3]


def by_hand(loss: Callable[..., Tensor], *, multi_positive: bool) -> float:
    one, every = torch.ones(1, dtype=torch.float64), torch.ones(4, dtype=torch.bool)
    shared = [one, 0 * one] if loss is sigmoid_loss else [one]
    columns = torch.eye(4, dtype=torch.float64)
    return float(loss(GRADED.log(), columns, *shared, every, GROUP, multi_positive=multi_positive))


def test_the_sigmoid_of_a_graded_batch_is_that_worked_out_by_hand() -> None:
    left_out = NEGATIVES * (5 / 4) * (4 / 3) * (5 / 4) * (7 / 6)
    assert by_hand(sigmoid_loss, multi_positive=False) == pytest.approx(math.log(left_out), rel=1e-14)
    halves = math.sqrt((5 / 4) * (3 / 2) * (4 / 3) * (5 / 4))  # 1 + e^-u of (0, 0), (0, 2), (2, 0), (2, 2)
    positive = NEGATIVES * halves * (4 / 3) * (7 / 6)
    assert by_hand(sigmoid_loss, multi_positive=True) == pytest.approx(math.log(positive), rel=1e-14)


def test_the_softmax_of_a_graded_batch_is_that_worked_out_by_hand() -> None:
    rows, columns = (4 / 7) * (3 / 7) * (4 / 6) * (6 / 10), (4 / 6) * (3 / 8) * (4 / 6) * (6 / 10)
    assert by_hand(softmax_loss, multi_positive=False) == pytest.approx(-math.log(rows * columns) / 2, rel=1e-14)
    rows = math.sqrt((4 / 9) * (2 / 9)) * (3 / 7) * math.sqrt((3 / 9) * (4 / 9)) * (6 / 10)
    columns = math.sqrt((4 / 9) * (3 / 9)) * (3 / 8) * math.sqrt((2 / 8) * (4 / 8)) * (6 / 10)
    assert by_hand(softmax_loss, multi_positive=True) == pytest.approx(-math.log(rows * columns) / 2, rel=1e-14)


@quick
@given(st.sampled_from(list(LOSSES)), st.booleans(), st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 4))
def test_values_and_slopes_are_autograds_in_tiles_of_any_size(
    loss: Callable[..., Tensor], multi_positive: bool, seed: int, count: int, side: int
) -> None:
    group = torch.randint(4, (count,), generator=torch.Generator().manual_seed(seed)) + 2**40  # float32 can't tell
    given, differentiable = arguments(loss, seed, count), 4 if loss is sigmoid_loss else 3

    def grouped(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *inputs: function(*inputs, group, multi_positive=multi_positive)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "CPU", fused.CPU._replace(tile=8 * side**2))
        ours = value_and_slopes(grouped(loss), given, differentiable)
    assert_same(ours, value_and_slopes(grouped(LOSSES[loss]), given, differentiable), EXACT)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("multi_positive", [False, True])
def test_where_all_images_differ_a_group_changes_nothing(loss: Callable[..., Tensor], multi_positive: bool) -> None:
    given, differentiable = arguments(loss, 3, 7), 4 if loss is sigmoid_loss else 3
    plain = value_and_slopes(loss, given, differentiable)
    different = value_and_slopes(
        lambda *inputs: loss(*inputs, torch.arange(7) * 3, multi_positive=multi_positive), given, differentiable
    )
    assert_same(different, plain, 1e-15 if multi_positive else 0.0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("multi_positive", [False, True])
def test_perfect_embeddings_of_images_that_come_twice_are_not_punished(
    loss: Callable[..., Tensor], multi_positive: bool
) -> None:
    """With groups, the slopes at the perfect embeddings are zero and the loss is the least there is."""
    x = torch.eye(3, dtype=torch.float64)[torch.tensor([0, 1, 0, 2, 0])]
    scale, bias, every = torch.tensor([100.0]).double(), torch.tensor([-50.0]).double(), torch.ones(5, dtype=torch.bool)
    given = [x, x, scale, bias, every] if loss is sigmoid_loss else [x, x, scale, every]
    group = torch.tensor([4, 1, 4, 2, 4])

    def slope(*group: Tensor) -> tuple[float, float]:
        value, *slopes = value_and_slopes(
            lambda *inputs: loss(*inputs, *group, multi_positive=multi_positive), given, len(given) - 1
        )
        return float(value), max(float(part.abs().max()) for part in slopes)

    value, steepest = slope(group)
    floor = 3 * math.log(3) if loss is softmax_loss and multi_positive else 0.0  # a third of the probability each
    assert value == pytest.approx(floor, abs=1e-12) and steepest < 1e-12
    value, steepest = slope()
    assert value > 1 and (steepest > 1 or loss is softmax_loss), "a softmax can do no better than guess among copies"


@pytest.mark.parametrize("name", ["siglip", "clip", "silc", "tips"])
@pytest.mark.parametrize("multi_positive", [False, True])
def test_the_objectives_read_the_group_also_of_a_batch_in_parts(
    name: str, multi_positive: bool, small: Small, uneven: list[Visit], pipeline: TextPipeline
) -> None:
    recipe = small(name) if name == "clip" else small(name, multi_positive=multi_positive)
    drawn = draw(recipe, uneven, pipeline)
    for objective in recipe.objectives:
        if isinstance(objective, Softmax):
            objective.multi_positive = multi_positive
    torch.manual_seed(0)
    learner = Learner.new(recipe, pipeline).double()
    torch.nn.init.zeros_(learner.model.logit_bias)  # at -10 a negative weighs next to nothing
    group = torch.arange(len(drawn)) // 2 % 3  # examples of one image in different parts, too

    def measured(count: int, group: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
        size = len(drawn) // count
        starts = range(0, len(drawn), size)
        parts = [exact(collate(recipe, drawn[at : at + size], pipeline)) for at in starts]
        for part, at in zip(parts, starts, strict=True):
            part.pop("group", None)
            part |= {} if group is None else {"group": group[at : at + size]}
        learner.zero_grad()
        live = denominators(learner, parts)
        losses, _ = accumulate(learner, learner, parts, live, lambda loss: loss.backward(), lambda _: nullcontext())
        return losses, torch.cat([p.grad.flatten() for p in learner.parameters() if p.grad is not None])

    whole = measured(1, group)
    for count in (2, 4):
        losses, grads = measured(count, group)
        assert max(abs(float(losses[key] - value)) for key, value in whole[0].items()) < EXACT
        torch.testing.assert_close(grads, whole[1], rtol=0, atol=EXACT)
    for other in (None, torch.arange(len(drawn))):
        losses, _ = measured(1, other)
        key = next(o.name for o in recipe.objectives if isinstance(o, Sigmoid | Softmax))
        assert abs(float(losses[key] - whole[0][key])) > 1e-4


@pytest.mark.parametrize("multi_positive", [False, True])
@pytest.mark.parametrize("name", ["siglip", "silc", "tips", "siglip2", "siglip2_naflex"])
def test_the_flag_of_every_recipe_with_a_sigmoid_says_what_captions_of_one_image_are(
    name: str, multi_positive: bool, small: Small
) -> None:
    """The terms of the recipe give the loss that was worked out by hand above."""
    columns, every = torch.eye(4, dtype=torch.float64), torch.ones(4, dtype=torch.bool)
    shared = [torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)]
    terms = [o for o in small(name, multi_positive=multi_positive).objectives if isinstance(o, Sigmoid)]
    assert len(terms) == (2 if name == "tips" else 1)
    for term in terms:
        found = term.compare([GRADED.log()[:, None], columns, every, GROUP], shared)
        assert float(found) == by_hand(sigmoid_loss, multi_positive=multi_positive)


def test_the_loss_for_other_loops_takes_a_group() -> None:
    images, texts, scale, bias, every = pairs(9, 6, 8)
    loss, group = SigLIP2Loss(8, caption=0.0, distillation=0.0), torch.tensor([0, 0, 1, 2, 1, 3])
    given = {"image_embeds": images, "text_embeds": texts, "logit_scale": scale.log(), "logit_bias": bias}
    every = torch.ones(6, dtype=torch.bool)
    expected = plain_sigmoid(images, texts, scale, bias, every, group) / 6
    torch.testing.assert_close(loss(progress=0.0, group=group, **given)["sigmoid"], expected, rtol=1e-6, atol=0)
    expected = plain_sigmoid(images, texts, scale, bias, every) / 6
    torch.testing.assert_close(loss(progress=0.0, **given)["sigmoid"], expected, rtol=1e-6, atol=0)
