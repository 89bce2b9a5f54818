"""A batch in parts has the gradient of the whole batch: for every recipe, whatever its objectives compare."""

from contextlib import nullcontext

import pytest
import torch
from conftest import Small, collate, draw, exact
from torch import Tensor

from opensiglip.data.fields.field import Visit
from opensiglip.data.text import TextPipeline
from opensiglip.recipes import RECIPES
from opensiglip.training.accumulate import accumulate
from opensiglip.training.learner import Learner, denominators

EXACT = 1e-12


@pytest.mark.parametrize("name", RECIPES)
def test_parts_change_neither_losses_nor_gradient(
    name: str, small: Small, uneven: list[Visit], pipeline: TextPipeline
) -> None:
    recipe = small(name)
    drawn = draw(recipe, uneven, pipeline)
    torch.manual_seed(0)
    learner = Learner.new(recipe, pipeline).double()
    seen: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    for count in (1, 2, 4):
        size = len(drawn) // count
        parts = [exact(collate(recipe, drawn[at : at + size], pipeline)) for at in range(0, len(drawn), size)]
        learner.zero_grad()
        live = denominators(learner, parts)
        losses, _ = accumulate(learner, learner, parts, live, lambda loss: loss.backward(), lambda _: nullcontext())
        grads = {key: p.grad.clone() for key, p in learner.named_parameters() if p.grad is not None}
        assert set(grads) == {key for key, p in learner.named_parameters() if p.requires_grad}
        seen.append((losses, grads))
    whole = seen[0]
    assert max(float(grad.abs().max()) for grad in whole[1].values()) > 0.1
    for in_parts in seen[1:]:
        for expected, got in zip(whole, in_parts, strict=True):
            assert got.keys() == expected.keys()
            gaps = {key: float((got[key] - value).abs().max()) for key, value in expected.items()}
            assert max(gaps.values()) < EXACT, gaps


def test_texts_that_no_example_has_give_a_loss_of_zero(
    small: Small, uneven: list[Visit], pipeline: TextPipeline
) -> None:
    recipe = small("siglip2")
    batch = exact(collate(recipe, draw(recipe, uneven[2:4], pipeline), pipeline))
    torch.manual_seed(0)
    learner = Learner.new(recipe, pipeline).double()
    learner.activate(0.0)
    losses, _ = learner(batch, denominators(learner, [batch]))
    losses["loss"].backward()
    assert {key: loss.item() for key, loss in losses.items()} == {"sigmoid": 0.0, "caption": 0.0, "loss": 0.0}
    assert all(not x.grad.any() for x in learner.parameters() if x.requires_grad)
