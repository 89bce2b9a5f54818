"""The order of training: every row once an epoch, the same at any number of ranks, mixtures exact to within one."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from opensiglip.data.order import CYCLE, Joined, Lanes, Mixture, cycle_of, order_of
from opensiglip.data.sources.spec import split_weight
from opensiglip.errors import UserError


class Rows(SimpleNamespace):
    """As much of a source as the order asks for."""

    def __len__(self) -> int:
        return int(self.rows)


def rows(count: int, **facts: Any) -> Any:
    return Rows(rows=count, **({"weight": None, "shards": None, "lanes": 1} | facts))


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
    weights = [1.0, 2.0, 3.3, 1e-9]
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
