"""Probes are fitted to the training split, by the settings that they name: graded cases with values known by hand."""

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_evaluate import INKS, SIDE, Many, encoded, oracle, square

from opensiglip.data.example import Example, Source
from opensiglip.evaluation.benchmark import Context, NotApplicable
from opensiglip.evaluation.benchmarks import depth_probe as depth
from opensiglip.evaluation.benchmarks.depth_probe import depth_probe
from opensiglip.evaluation.benchmarks.image_probes import image_probes
from opensiglip.evaluation.benchmarks.probes import probes
from opensiglip.evaluation.metrics.linear import choose_penalty, fit_classifier, knn, logistic_regression


def test_probes_learn_from_the_training_split_alone() -> None:
    """Four of the twelve held-out labels are wrong, and a probe that never saw them is wrong on those four."""
    names = list(INKS)
    held_out = [square(names[place % 3], 8 * (place % 4), {"label": names[place % 3]}) for place in range(12)]
    for place in (0, 4, 7, 11):
        wrong = names[(place + 1) % 3]
        held_out[place] = replace(held_out[place], extras=held_out[place].extras | {"label": wrong})
    metrics = image_probes(oracle(), encoded(oracle(), held_out), Context(Many())).metrics
    assert metrics["knn"] == metrics["linear"] == metrics["shots_5"] == pytest.approx(8 / 12)
    assert metrics["training_images"] == 36 and metrics["images"] == 12


def test_few_shots_are_drawn_by_three_seeds() -> None:
    """One shot of overlapping classes depends on the draw, so images are right by one draw or two of the three."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(2).repeat(30)
    x = torch.randn(60, 4, generator=generator) + 0.5 * y[:, None]
    known, asked = (replace(some, tokens=x[part, None], pooled=x[part]) for some, part in _halves(x, y))
    context = Context(Many())
    context._training_examples["oracle"] = known
    values = image_probes(oracle(), asked, context).metrics["shots_1_values"]["scores"]
    thirds = {round(3 * value) for value in values}
    assert all(abs(3 * value - round(3 * value)) < 1e-9 for value in values) and thirds & {1, 2}


def _halves(x: torch.Tensor, y: torch.Tensor) -> list[tuple[Any, slice]]:
    halves = []
    for part in (slice(0, 40), slice(40, 60)):
        examples = [square("red", 0, {"label": f"class {label}"}) for label in y[part].tolist()]
        halves.append((encoded(oracle(), examples), part))
    return halves


def test_twenty_neighbours_outvote_the_nearest() -> None:
    """Of the 20 nearest the nearest one is of class 1, nineteen of class 0; behind them stand many of class 1."""
    sklearn = pytest.importorskip("sklearn.neighbors")
    angles = torch.tensor([0.0] + [0.12] * 19 + [0.2] * 60, dtype=torch.float64)
    x = torch.stack([angles.cos(), angles.sin()], 1)
    y = torch.tensor([1] + [0] * 19 + [1] * 60)
    test = torch.tensor([[1.0, 0.0], [0.9, 0.17]], dtype=torch.float64)
    votes = knn(x, y, test, 2)
    theirs = sklearn.KNeighborsClassifier(
        20, metric="cosine", algorithm="brute", weights=lambda distances: np.exp((1 - distances) / 0.07)
    ).fit(x.numpy(), y.numpy())
    np.testing.assert_allclose(
        (votes / votes.sum(1, keepdim=True))[0], theirs.predict_proba(test.numpy())[0], atol=1e-6
    )
    assert votes[0].argmax() == 0


def test_the_penalty_is_the_best_on_rows_that_were_not_fitted() -> None:
    """Forty features of noise and one that tells: the least penalty fits the noise, the greatest forgets the one."""
    metrics = pytest.importorskip("sklearn.metrics")
    linear = pytest.importorskip("sklearn.linear_model")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(160, 40, generator=generator)
    y = (x[:, 0] + 0.3 * torch.randn(160, generator=generator) > 0).long()
    penalties = (1e-4, 1e-1, 30.0)
    losses = {}
    for penalty in penalties:
        model = linear.LogisticRegression(C=2 / (penalty * 128), max_iter=1000).fit(x[32:].numpy(), y[32:].numpy())
        losses[penalty] = metrics.log_loss(y[:32].numpy(), model.predict_proba(x[:32].numpy()))
    assert losses[1e-1] < 0.9 * min(losses[1e-4], losses[30.0])
    assert choose_penalty(x, y, 2, penalties) == 1e-1
    chosen, worst = (fit_classifier(x, y, 2, 0, some)(x) for some in (penalties, (1e-4,)))
    torch.testing.assert_close(chosen, fit_classifier(x, y, 2, 0, (1e-1,))(x))
    assert (chosen - worst).abs().max() > 1


@pytest.mark.parametrize("classes", [2, 3])
def test_the_logistic_regression_is_that_of_the_softmax(classes: int) -> None:
    """At the minimum of mean cross-entropy + penalty / 2 |W|^2 the slopes are 0, also of two classes."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(200, 6, generator=generator, dtype=torch.float64), torch.arange(200) % classes
    x[:, 0] += y
    weight, bias = (some.requires_grad_() for some in logistic_regression(x, y, classes, 0.05))
    loss = torch.nn.functional.cross_entropy(x @ weight + bias, y) + 0.05 / 2 * weight.square().sum()
    for slope in torch.autograd.grad(loss, (weight, bias)):
        assert slope.abs().max() < 1e-5


def test_a_class_without_rows_is_never_chosen() -> None:
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(2))
    logits = fit_classifier(x, (x[:, 0] > 0).long() * 2, 4, 0, (1e-2,))(x)
    assert set(logits.argmax(1).tolist()) == {0, 2}
    assert fit_classifier(x, torch.ones(50, dtype=torch.int64), 3, 0)(x).argmax(1).tolist() == [1] * 50


class Levels(Source):
    """Black images, all at a depth of two metres."""

    name, languages = "levels", ()

    def __len__(self) -> int:
        return 4

    def example(self, index: int, language: str | None = None) -> Example:
        return Example(torch.zeros(3, SIDE, SIDE, dtype=torch.uint8), (), extras={"metres": 2.0})

    def texts(self) -> Any:
        return iter(())

    def describe(self) -> dict[str, Any]:
        return {}


def test_depth_is_off_by_the_mean_of_the_images_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training says 2 m; images at 3 m and at 5 m are 1 m and 3 m off: 2 m, not the root of (1 + 9) / 2."""
    monkeypatch.setattr(depth, "depth", lambda one: torch.full((SIDE, SIDE), one.extras["metres"]))
    held_out = [replace(Levels().example(0), extras={"metres": metres, "size": (SIDE, SIDE)}) for metres in (3.0, 5.0)]
    metrics = depth_probe(oracle(), encoded(oracle(), held_out), Context(Levels())).metrics
    assert metrics["rmse_metres_mean_depth"] == pytest.approx(2) == metrics["rmse_metres"]


def test_without_scikit_learn_probes_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(NotApplicable, match=r"pip install \"opensiglip\[eval\]\""):
        probes(oracle(), encoded(oracle(), [square("red", 0)]), Context(Many()))
