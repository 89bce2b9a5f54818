"""Distillation of a reference's pairs: the equations, what a run makes of them, and a reference that is cached."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import open_clip.loss
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from test_losses import EXACT, assert_same, pairs, quick, value_and_slopes
from torch import Tensor

from opensiglip.errors import UserError
from opensiglip.losses import fused
from opensiglip.losses.soft_pairs import soft_sigmoid_loss, soft_softmax_loss
from opensiglip.recipes import RECIPES
from opensiglip.training.config import TrainConfig
from opensiglip.training.curation.build import distilled


def plain_sigmoid(x: Tensor, y: Tensor, t: Tensor, b: Tensor, u: Tensor, v: Tensor, valid: Tensor) -> Tensor:
    """Binary cross-entropy of every pair that has a text, by torch."""
    targets = (u[valid] @ v[valid].T).sigmoid()
    return F.binary_cross_entropy_with_logits(t * x[valid] @ y[valid].T + b, targets, reduction="sum")


def plain_softmax(x: Tensor, y: Tensor, t: Tensor, u: Tensor, v: Tensor, valid: Tensor) -> Tensor:
    """Cross-entropy of rows and of columns, halved."""
    logits, targets = t * x[valid] @ y[valid].T, u[valid] @ v[valid].T
    return -sum((targets.softmax(dim) * logits.log_softmax(dim)).sum() for dim in (0, 1)) / 2


@quick
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 5), st.integers(1, 4))
def test_the_tiled_losses_and_their_slopes_are_autograds(seed: int, count: int, width: int, side: int) -> None:
    x, y, t, b, valid = pairs(seed, count, width)
    u, v = (3 * row for row in pairs(seed + 1, count, 3)[:2])
    cases: Sequence[tuple[Callable[..., Tensor], Callable[..., Tensor], list[Tensor], int]] = [
        (soft_sigmoid_loss, plain_sigmoid, [x, y, t, b, u, v, valid], 4),
        (soft_softmax_loss, plain_softmax, [x, y, t, u, v, valid], 3),
    ]
    for ours, plain, arguments, differentiable in cases:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fused, "CPU", fused.CPU._replace(tile=8 * side**2))
            found = value_and_slopes(ours, arguments, differentiable)
        assert_same(found, value_and_slopes(plain, arguments, differentiable), EXACT)


def test_the_softmax_is_open_clips() -> None:
    x, y, t, _, _ = pairs(3, 7, 5)
    u, v = pairs(4, 7, 3)[:2]
    theirs = open_clip.loss.DistillClipLoss()(x, y, t, u, v, torch.tensor(9.0).double(), output_dict=True)
    ours = soft_softmax_loss(x, y, t, 9 * u, v, torch.ones(7, dtype=torch.bool)) / 7
    assert float(ours) == pytest.approx(float(theirs["distill_loss"]), abs=1e-12)


def test_a_learner_that_is_the_teacher_has_no_slope_left() -> None:
    x, y, t, b, valid = pairs(5, 8, 6)
    u, v = torch.cat([t * x, b.expand(8, 1)], 1), torch.cat([y, torch.ones(8, 1).double()], 1)
    slopes = value_and_slopes(soft_sigmoid_loss, [x, y, t, b, u, v, valid], 4)[1:]
    slopes += value_and_slopes(soft_softmax_loss, [x, y, t, u, v, valid], 3)[1:]
    assert max(float(slope.abs().max()) for slope in slopes) < 1e-12


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"distil": "softmax"}, "--reference too"),
        ({"distil_weight": 0.5}, "is for runs with --distil; give it too"),
        ({"curate": "learner", "reference": "x"}, "leave out --reference"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        TrainConfig(data=("scenes",), out=Path("x"), **flags)
    TrainConfig(data=("scenes",), out=Path("x"), curate="learner", reference="x", distil="sigmoid")


def test_recipes_without_pairs_of_whole_images_and_texts_are_refused() -> None:
    def given(name: str, kind: Any) -> Any:
        config = TrainConfig(data=("scenes",), out=Path("x"), reference="x", distil=kind, distil_weight=0.25)
        return distilled(config, RECIPES[name](size="tiny"))

    for name in ("silc", "cap"):
        with pytest.raises(UserError, match="--distil compares each image, seen whole, with one text"):
            given(name, "softmax")
    with pytest.raises(UserError, match="--distil sigmoid needs the bias"):
        given("clip", "sigmoid")
    for name in ("siglip", "siglip2", "siglip2_acid", "siglip2_naflex", "clip", "lit", "align", "coca"):
        term = given(name, "softmax").objectives[-1]
        assert (term.name, term.kind, term.weight) == ("distil", "softmax", 0.25)
