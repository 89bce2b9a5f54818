"""The order of training: every row once an epoch, the same at any number of ranks, mixtures exact to within one."""

import tracemalloc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from opensiglip.data.fields.frame import Frame
from opensiglip.data.loader import DataPlan
from opensiglip.data.order import CYCLE, Joined, Lanes, Mixture, cycle_of, order_of, shares_of
from opensiglip.data.sources.spec import split_weight
from opensiglip.data.weighting.sources import parse_weights, weigh
from opensiglip.errors import UserError
from opensiglip.training.startup import source_lines


class Rows(SimpleNamespace):
    """As much of a source as the order asks for."""

    def __len__(self) -> int:
        return int(self.rows)

    @property
    def epoch_rows(self) -> int:
        return len(self) if self.example_weights is None else round(self.example_weights.sum())


def rows(count: int, **facts: Any) -> Any:
    return Rows(rows=count, **({"weight": None, "shards": None, "lanes": 1, "example_weights": None} | facts))


@pytest.mark.parametrize(
    ("sizes", "lanes"),
    [([5, 7, 1, 9], 1), ([100] * 17, 4), (list(range(60)), 8), ([1], 1), ([3], 64), ([0, 5, 0, 9], 2)],
)
def test_every_row_comes_once_in_each_epoch_which_differ(sizes: list[int], lanes: int) -> None:
    order = Lanes(sizes, 3, lanes)
    epochs = [order.find(np.arange(order.rows) + epoch * order.rows) for epoch in range(3)]
    assert all(sorted(epoch) == list(range(sum(sizes))) for epoch in epochs)
    assert order.rows < 9 or not np.array_equal(epochs[0], epochs[1])


def test_about_as_many_shards_are_read_at_once_as_there_are_lanes() -> None:
    order = Lanes([1000] * 200, 0, 8)
    read = order.find(np.arange(4000, 4000 + 1000)) // 1000
    assert 2 < len(np.unique(read)) <= 4 * order.lanes
    mixed = Lanes([1000] * 200, 0, 1).find(np.arange(4000, 4000 + 1000)) // 1000
    assert len(np.unique(mixed)) > 190


def test_positions_are_found_in_any_pieces_so_ranks_and_resumed_runs_see_the_same() -> None:
    sources = [rows(500, shards=[100] * 5, lanes=2, weight=2.0), rows(70, weight=1.0)]
    whole = order_of(sources, 5).find(np.arange(900))
    pieces = [order_of(sources, 5).find(np.arange(first, first + 30)) for first in range(0, 900, 30)]
    for number in range(2):
        assert np.array_equal(whole[number], np.concatenate([piece[number] for piece in pieces]))


def test_sources_without_weights_or_shards_are_shuffled_as_one_by_numpy_as_older_runs_were() -> None:
    order = order_of([rows(30), rows(20)], 7)
    assert isinstance(order, Joined)
    expected = np.concatenate([np.random.default_rng([0, 7, epoch]).permutation(50) for epoch in range(2)])
    numbers, found = order.find(np.arange(100))
    assert np.array_equal(found + 30 * numbers, expected)


def test_each_source_has_its_share_to_within_one_at_every_place() -> None:
    weights = (1.0, 2.0, 3.3, 1e-9)
    pattern, counts = cycle_of(weights)
    assert counts.sum() == CYCLE and counts.min() == 1
    for number, count in enumerate(counts):
        ahead = np.cumsum(pattern == number) - count / CYCLE * np.arange(1, CYCLE + 1)
        assert np.abs(ahead).max() <= 1
    mixture = order_of([rows(9, weight=1.0), rows(9, weight=3.0)], 0)
    assert isinstance(mixture, Mixture)
    assert np.bincount(mixture.find(np.arange(400))[0]).tolist() == [100, 300]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("scenes", ("scenes", None)),
        ("scenes=0.5", ("scenes", 0.5)),
        ("scenes:drawings=24", ("scenes:drawings=24", None)),
        ("scenes:drawings=24,objects=3=2", ("scenes:drawings=24,objects=3", 2.0)),
        ("a/{0..9}.tar=3", ("a/{0..9}.tar", 3.0)),
        ("a.csv?text=3", ("a.csv?text=3", None)),
        ("a.csv?text=3=2", ("a.csv?text=3", 2.0)),
        ("folder:box_format=xywh=1e-1", ("folder:box_format=xywh", 0.1)),
    ],
)
def test_a_weight_stands_after_the_last_equals_sign(spec: str, expected: tuple[str, float | None]) -> None:
    assert split_weight(spec) == expected


def test_a_weight_of_zero_is_refused() -> None:
    with pytest.raises(UserError, match="a number above 0"):
        split_weight("scenes=0")


@pytest.mark.parametrize(
    ("rule", "expected"), [("size", [0.8, 0.2]), ("equal", [0.5, 0.5]), ("temperature:0.5", [2 / 3, 1 / 3])]
)
def test_a_rule_gives_each_source_its_share(rule: str, expected: list[float]) -> None:
    sources = [rows(400), rows(100)]
    weigh(sources, rule)
    assert shares_of(sources) == pytest.approx(expected, abs=1e-4)


def test_the_start_up_lines_say_share_rows_and_epochs_of_each_of_several_sources() -> None:
    sources = [rows(300, name="a.tar", weight=3.0), rows(50, name="b", weight=1.0)]
    facts: dict[str, Any] = {"frame": Frame(8), "fields": [], "pipeline": None, "batch_size": 4, "seed": 0}
    plan = DataPlan(sources=sources, **facts)
    said = ["source      a.tar: 75.00%, 300 rows, 1 epochs", "source      b: 25.00%, 50 rows, 2 epochs"]
    assert source_lines(plan, 400) == said
    assert source_lines(DataPlan(sources=sources[:1], **facts), 400) == []


@pytest.mark.parametrize("rule", ["temperature:2", "temperature", "temperature:x", "nan", "temperature:nan"])
def test_a_rule_that_is_none_is_refused_and_so_is_one_beside_a_weight(rule: str) -> None:
    with pytest.raises(UserError, match="is not size, equal or temperature:A"):
        parse_weights(rule)
    with pytest.raises(UserError, match="both set a share"):
        parse_weights("size", ["a", "b=2"])


def test_a_thousand_million_rows_in_a_hundred_thousand_shards_are_found_in_memory_of_the_shards() -> None:
    order = Lanes(np.full(100_000, 10_000), 1, 64)
    rng = np.random.default_rng(0)
    positions = rng.integers(0, order.rows, 200_000)
    order.find(positions[:1000])
    tracemalloc.start()
    found = order.find(positions)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(np.unique(found)) == len(np.unique(positions)) and found.max() < order.rows
    assert peak < 100_000_000, "some words for each position asked for and each shard, none for each row"


def test_a_source_sorted_by_class_is_mixed() -> None:
    shards, size = 200, 500  # one class a shard
    order = Lanes([size] * shards, 0, 64)
    batches = order.find(np.arange(40 * 1024)).reshape(40, 1024) // size
    classes = [len(np.unique(batch)) for batch in batches]
    assert min(classes) >= 60, classes
    assert len(np.unique(Lanes([size] * shards, 0, 1).find(np.arange(1024)) // size)) > 190
    opened = [len(np.unique(batches[at : at + 2])) for at in range(39)]
    assert max(opened) <= 4 * order.lanes, "and yet few shards are open"


def test_the_next_window_of_each_source_is_known_ahead() -> None:
    sources = [rows(500, shards=[100] * 5, lanes=2, weight=2.0), rows(70, weight=1.0)]
    mixture = order_of(sources, 5)
    assert isinstance(mixture, Mixture)
    positions = np.arange(30)
    numbers, now = mixture.find(positions)
    same, later = mixture.find(positions, windows=1)
    own = mixture.orders[0]
    assert np.array_equal(numbers, same) and own.window == own.lanes * own.slice > 0
    places = np.flatnonzero(numbers == 0)
    assert np.array_equal(later[places], own.find(np.arange(len(places)) + own.window))
    assert np.array_equal(now[places], own.find(np.arange(len(places))))
