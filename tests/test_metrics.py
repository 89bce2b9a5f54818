"""Scores agree with independent references, and can't be had for nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opensiglip.evaluation.metrics.boxes import box_iou
from opensiglip.evaluation.metrics.intervals import mean_with_interval
from opensiglip.evaluation.metrics.linear import few_shot, fit_classifier, fit_numbers, knn
from opensiglip.evaluation.metrics.ranking import accuracies, ranks
from opensiglip.evaluation.metrics.segmentation import class_areas, mean_iou


def recall_by_clip_benchmark(scores: torch.Tensor, positive: torch.Tensor, k: int) -> float:
    """As CLIP_benchmark/metrics/zeroshot_retrieval.py defines it: any positive among the k best; all pairs at once."""
    hits = 0
    for row, right in zip(scores.tolist(), positive.tolist(), strict=True):
        best = sorted(range(len(row)), key=lambda place: -row[place])[:k]
        hits += any(right[place] for place in best)
    return hits / len(scores)


@pytest.mark.parametrize("block", [2**25, 40])
def test_recall_is_that_of_clip_benchmark(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr("opensiglip.evaluation.metrics.ranking.BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(30, 8, generator=generator), torch.randn(97, 8, generator=generator)
    owners = torch.cat([torch.arange(30), torch.randint(30, (67,), generator=generator)])  # one to many captions
    texts += 0.6 * images[owners]
    positive = owners[:, None] == torch.arange(30)
    to_image = ranks(texts, images, owners, torch.arange(30))
    to_text = ranks(images, texts, torch.arange(30), owners)
    for k in (1, 5, 10):
        assert float((to_image < k).double().mean()) == recall_by_clip_benchmark(texts @ images.T, positive, k)
        assert float((to_text < k).double().mean()) == recall_by_clip_benchmark(images @ texts.T, positive.T, k)
    assert 0.1 < float((to_image < 1).double().mean()) < 0.9


def test_a_model_that_tells_nothing_apart_is_at_chance() -> None:
    for value in (1.0, float("nan")):
        same = torch.full((50, 4), value)
        found = ranks(same, same, torch.arange(50), torch.arange(50))
        assert found.tolist() == list(range(50))
        hits = accuracies("accuracy", same @ same.T, torch.arange(50))
        assert hits["accuracy"] == 0.02 and hits["accuracy_top5"] == 0.1


def test_accuracy_is_that_of_torchmetrics() -> None:
    functional = pytest.importorskip("torchmetrics.functional.classification")
    scores = torch.randn(200, 17, generator=torch.Generator().manual_seed(1))
    truths = torch.randint(17, (200,), generator=torch.Generator().manual_seed(2))
    ours = accuracies("accuracy", scores, truths)
    for name, k in (("accuracy", 1), ("accuracy_top5", 5)):
        theirs = functional.multiclass_accuracy(scores, truths, 17, average="micro", top_k=k)
        assert ours[name] == pytest.approx(float(theirs), abs=1e-6)
        low, high = ours[f"{name}_ci95"]
        assert low < ours[name] < high


def test_mean_iou_is_that_of_torchmetrics() -> None:
    functional = pytest.importorskip("torchmetrics.functional.classification")
    generator = torch.Generator().manual_seed(3)
    true = torch.randint(-1, 6, (12, 9, 9), generator=generator)  # of 8 classes two never occur; -1 is left out
    found = torch.where(torch.rand(true.shape, generator=generator) < 0.5, true.clamp(min=0), 6)
    ours = mean_iou("miou", torch.stack([class_areas(a, b, 8) for a, b in zip(found, true, strict=True)]))
    theirs = functional.multiclass_jaccard_index(found, true, 8, average="macro", ignore_index=-1)
    assert ours["miou"] == pytest.approx(float(theirs), abs=1e-6)
    assert ours["miou_ci95"][0] < ours["miou"] < ours["miou_ci95"][1]


def test_intersections_are_counted_pixel_by_pixel() -> None:
    found, true = torch.tensor([[0, 1], [1, 2]]), torch.tensor([[0, 0], [1, -1]])
    assert class_areas(found, true, 3).tolist() == [[1, 1, 0], [1, 2, 0], [2, 1, 0]]


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 4), st.floats(0.1, 3)), min_size=2, max_size=30),
    st.integers(2, 5),
)
@settings(deadline=None, max_examples=30)
def test_a_weight_is_a_repetition(rows: list[tuple[float, int, float]], times: int) -> None:
    values, clusters, _ = zip(*rows, strict=True)
    weighted = mean_with_interval("x", values, clusters, [float(times)] + [1.0] * (len(values) - 1))
    repeated = mean_with_interval(
        "x", [values[0]] * (times - 1) + list(values), [clusters[0]] * (times - 1) + list(clusters)
    )
    assert weighted["x"] == pytest.approx(repeated["x"])
    assert weighted["x_ci95"] == pytest.approx(repeated["x_ci95"])


def test_the_interval_is_over_images_not_over_answers() -> None:
    answers, images = [1.0, 0.0] * 40, list(range(80))
    apart = mean_with_interval("x", answers, images)["x_ci95"]
    together = mean_with_interval("x", answers * 25, images * 25)["x_ci95"]  # the same 80 images, each asked 25 times
    assert together == pytest.approx(apart)


def test_the_interval_holds_95_of_100() -> None:
    """1.96 standard errors to each side, of 400 fair coins and of 400 images' IoU."""
    low, high = mean_with_interval("x", [1.0, 0.0] * 200, range(400))["x_ci95"]
    assert (low, high) == pytest.approx((0.451, 0.549), abs=0.005)
    areas = torch.tensor([[[1, 0], [1, 0], [1, 0]], [[0, 0], [0, 1], [1, 0]]] * 200)  # right in one image of two
    low, high = mean_iou("x", areas)["x_ci95"]
    assert (low, high) == pytest.approx((0.451 / 2, 0.549 / 2), abs=0.005)


def test_overlap_of_boxes() -> None:
    assert box_iou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert box_iou((0, 0, 1, 1), (1, 0, 2, 1)) == 0


@pytest.mark.parametrize(("examples", "width"), [(40, 6), (12, 30)])
def test_few_shot_is_ridge_regression_of_the_one_hot(examples: int, width: int) -> None:
    rng = np.random.default_rng(0)
    x, test, y = rng.normal(size=(examples, width)) * 3 + 1, rng.normal(size=(9, width)), rng.integers(0, 4, examples)
    mean, std = x.mean(0), x.std(0) + 1e-5
    known = np.hstack([(x - mean) / std, np.full((examples, 1), 100.0)])
    # Ridge as plain least squares on rows that pull the weights to zero; another way to the same minimum.
    pull, targets = np.sqrt(2.0**10) * np.eye(width + 1), 2 * np.eye(4)[y] - 1
    weight = np.linalg.lstsq(np.vstack([known, pull]), np.vstack([targets, np.zeros((width + 1, 4))]), rcond=None)[0]
    wanted = np.hstack([(test - mean) / std, np.full((9, 1), 100.0)]) @ weight
    found = few_shot(torch.tensor(x), torch.tensor(y), torch.tensor(test), 4)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-9)


def test_neighbours_vote_by_nearness() -> None:
    x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    votes = knn(x, torch.tensor([0, 0, 1]), torch.tensor([[1.0, 0.05], [0.05, 1.0]]), 3)
    assert votes.argmax(1).tolist() == [0, 1] and votes[:, 2].tolist() == [0, 0]


def test_the_linear_layer_stands_where_its_loss_has_no_slope() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 5, generator=generator) * 4 + 7
    y = (x[:, 0] > 7).long() + (x[:, 1] > 9).long()
    scores = fit_classifier(x, y, 3, seed=0, penalties=(1e-2,))
    assert float((scores(x).argmax(1) == y).double().mean()) > 0.75
    # At the minimum the mean residual of every class is zero: biases are not penalised.
    residual = scores(x).softmax(1) - torch.nn.functional.one_hot(y, 3)
    assert residual.mean(0).abs().max() < 1e-3
    assert torch.equal(scores(x), fit_classifier(x, y, 3, seed=0, penalties=(1e-2,))(x))


def test_a_plane_is_read_off_exactly() -> None:
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    y = x @ torch.tensor([1.0, -2.0, 0.0, 3.0]) + 5
    torch.testing.assert_close(fit_numbers(x, y, penalty=1e-9)(x).float(), y, atol=1e-4, rtol=0)
