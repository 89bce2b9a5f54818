"""The order of training: from positions of the endless stream to rows of sources, a pure function without state.

Sources whose rows are cheap in any order (scenes, folders, memory-mapped tables) are shuffled whole. Sharded sources
are read in *lanes*: an epoch lays the shards end to end in a drawn order, cuts that line into equal lanes and reads
them side by side. A *window* takes a slice of every lane and shuffles its rows:

    line    [shard 7 | shard 2 | shard 9 | ... ]      drawn anew each epoch
    lanes   [ lane 0     ][ lane 1     ][ ... ]       about as many shards are open at once
    window    ####          ####          ####        the unit of shuffling

Every row comes once an epoch. Memory is a few words a shard, whatever the number of rows. With weights a row comes as
often as its weight says (`Weighted`), for 8 bytes of memory a row.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from math import gcd

import numpy as np
from numpy.typing import NDArray

from opensiglip.data.example import Source

Ints = NDArray[np.int64]
Words = NDArray[np.uint64]
Floats = NDArray[np.float64]

SHUFFLE = 0  # first word of a generator's seed: what it is for
LINE, WINDOW, SHIFT = 1, 2, 3  # the same, for `hash_words`
ROUNDS = 8  # of the Feistel network: with 6, pairs of a permutation of 12 are visibly uneven
WINDOW_ROWS = 1 << 18
CYCLE = 10_000  # positions after which a mixture repeats its pattern of sources


class Order(ABC):
    """Which row stands at each position of an endless stream; each comes once in every epoch, if it has no weight."""

    rows: int  # positions of an epoch
    window: int = 0  # positions after which other shards are open

    @abstractmethod
    def find(self, positions: Ints) -> Ints:
        """The row [N] at each position [N]."""


class Shuffled(Order):
    """All rows in one permutation by numpy, drawn anew each epoch; 8 bytes of memory a row."""

    def __init__(self, rows: int, seed: int) -> None:
        self.rows, self.seed = rows, seed
        self.epoch, self.drawn = -1, np.empty(0, np.int64)

    def find(self, positions: Ints) -> Ints:
        epochs, places = np.divmod(positions, self.rows)
        rows = np.empty_like(places)
        for epoch in np.unique(epochs):
            if epoch != self.epoch:
                rng = np.random.default_rng([SHUFFLE, self.seed, int(epoch)])
                self.epoch, self.drawn = int(epoch), rng.permutation(self.rows)
            rows[epochs == epoch] = self.drawn[places[epochs == epoch]]
        return rows


class Lanes(Order):
    """Shards of `sizes` rows read in `lanes` lanes; with one lane or one shard, one permutation of all rows."""

    def __init__(self, sizes: Sequence[int] | Ints, seed: int, lanes: int = 1) -> None:
        self.sizes, self.seed = np.asarray(sizes, np.int64), seed
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.rows, shards = int(self.sizes.sum()), len(self.sizes)
        # Coprime with the number of shards: lanes then reach the ends of equal shards one after the other.
        self.lanes = next(n for n in range(min(lanes, self.rows), 0, -1) if gcd(n, shards) == 1)
        self.lane_rows = self.rows // self.lanes  # the few rows left over join the last window
        # At most half a mean shard of each lane, or a window would open more than two shards a lane.
        most = self.rows // (2 * shards) if shards > self.lanes else self.lane_rows
        self.slice = max(1, min(WINDOW_ROWS // self.lanes, most)) if self.lanes > 1 else self.lane_rows
        self.windows = self.lane_rows // self.slice
        self.window = self.lanes * self.slice
        self._epoch, self._line = -1, (self.starts, self.starts)

    def find(self, positions: Ints) -> Ints:
        epochs, places = np.divmod(positions, self.rows)
        width = self.lanes * self.slice  # rows of every window but the last, which has what is left
        windows = np.minimum(places // width, self.windows - 1)
        keys, last, inside = hash_words(self.seed, WINDOW, epochs, windows), windows == self.windows - 1, places.copy()
        inside -= windows * width
        for chosen, size in ((~last, width), (last, self.rows - (self.windows - 1) * width)):
            inside[chosen] = permute(inside[chosen], size, keys[chosen])
        lane, along = inside % self.lanes, windows * self.slice + inside // self.lanes
        line = np.where(along < self.lane_rows, lane * self.lane_rows + along, self.lanes * self.lane_rows + lane)
        rows = np.empty_like(line)
        for epoch in np.unique(epochs):
            shards, ends = self._shards(int(epoch))
            own = epochs == epoch
            number = np.searchsorted(ends, line[own], side="right")
            shard = shards[number]
            rows[own] = self.starts[shard] + line[own] - ends[number] + self.sizes[shard]
        return rows

    def _shards(self, epoch: int) -> tuple[Ints, Ints]:
        """The shards as this epoch lays them, and where each ends in its line."""
        if epoch != self._epoch:
            count = len(self.sizes)
            shards = permute(np.arange(count), count, hash_words(self.seed, LINE, epoch))
            self._epoch, self._line = epoch, (shards, np.cumsum(self.sizes[shards]))
        return self._line


class Weighted(Order):
    """Rows as often as their weights say: floor(w) or ceil(w) times in each epoch, w times on average, 0 never.

    This is systematic sampling (W. G. Madow, 1949). The weights end to end are a line of `rows` units, scaled by the
    little that makes that a whole number. An epoch takes the points u, u + 1, ... of it, for a u in [0, 1) drawn anew
    each epoch; the row whose stretch holds a point comes. The points are permuted by `Lanes`, as rows are that have no
    weights, so a sharded source opens as few shards as without.
    """

    def __init__(self, weights: Floats, rows: int, seed: int, shards: Sequence[int] | None = None, lanes: int = 1):
        self.seed, self.rows, self.last = seed, rows, int(np.flatnonzero(weights)[-1])
        self.ends = np.cumsum(weights, dtype=np.float64)
        self.ends *= rows / self.ends[-1]
        edges = np.cumsum([len(weights)] if shards is None else shards)
        starts = np.floor(np.where(edges > 0, self.ends[edges - 1], 0))  # the first point beyond each shard
        starts[edges > self.last] = rows
        points = np.diff(starts, prepend=0).astype(np.int64)
        self.lanes = Lanes(points[points > 0], seed, lanes)
        self.window = self.lanes.window

    def find(self, positions: Ints) -> Ints:
        # 24 bits, so that a point is exact as a float64
        shifts = (hash_words(self.seed, SHIFT, positions // self.rows) >> np.uint64(40)) / 2.0**24
        rows = np.searchsorted(self.ends, self.lanes.find(positions) + shifts, side="right")
        return np.minimum(rows, self.last)  # beyond it lies a point only where the last end was rounded down


class Mixture:
    """Sources side by side in shares by weight, each in its own order and epochs.

    Of the first n positions of a cycle, each source has its share to within one.
    """

    def __init__(self, orders: Sequence[Order], weights: Sequence[float]) -> None:
        self.orders = list(orders)
        self.pattern, self.counts = cycle_of(tuple(weights))
        self.earlier = np.zeros(len(self.pattern), np.int64)  # places of the same source before each, in the cycle
        for number, count in enumerate(self.counts):
            self.earlier[self.pattern == number] = np.arange(count)

    def find(self, positions: Ints, *, windows: int = 0) -> tuple[Ints, Ints]:
        """Number of the source [N], and the row of it [N], at each position [N]; `windows`: as many windows later."""
        cycles, places = np.divmod(positions, len(self.pattern))
        numbers = self.pattern[places]
        own = cycles * self.counts[numbers] + self.earlier[places]
        rows = np.empty_like(own)
        for number, order in enumerate(self.orders):
            chosen = numbers == number
            rows[chosen] = order.find(own[chosen] + windows * order.window)
        return numbers, rows


class Joined:
    """Sources shuffled as one, so in shares by size: one epoch for all of them."""

    def __init__(self, sizes: Sequence[int], seed: int) -> None:
        self.ends = np.cumsum(sizes)
        self.starts = self.ends - np.asarray(sizes)
        self.order = Shuffled(int(self.ends[-1]), seed)

    def find(self, positions: Ints) -> tuple[Ints, Ints]:
        """Number of the source [N], and the row of it [N], at each position [N]."""
        rows = self.order.find(positions)
        numbers = np.searchsorted(self.ends, rows, side="right")
        return numbers, rows - self.starts[numbers]


def order_of(sources: Sequence[Source], seed: int) -> Joined | Mixture:
    """The order that sources are trained on in: by weight where any has one or is sharded, else shuffled as one.

    A source without a weight beside others with one counts 1; where none has one, each counts the rows of its epoch.
    """
    if all(source.weight is None and source.shards is None and source.example_weights is None for source in sources):
        return Joined([len(source) for source in sources], seed)
    orders = [_order_of_one(source, seed + number) for number, source in enumerate(sources)]
    weighted = any(source.weight is not None for source in sources)
    return Mixture(orders, [(source.weight or 1.0) if weighted else float(source.epoch_rows) for source in sources])


def _order_of_one(source: Source, seed: int) -> Order:
    if source.example_weights is not None:
        return Weighted(source.example_weights, source.epoch_rows, seed, source.shards, source.lanes)
    return Lanes([len(source)] if source.shards is None else source.shards, seed, source.lanes)


def shares_of(sources: Sequence[Source]) -> list[float]:
    """The share of the stream that each source has."""
    if not sources:
        return []
    order = order_of(sources, 0)
    counts = order.counts if isinstance(order, Mixture) else np.asarray([len(source) for source in sources])
    return [float(share) for share in counts / counts.sum()]


@lru_cache(maxsize=16)  # a run asks for its own several times
def cycle_of(weights: tuple[float, ...]) -> tuple[Ints, Ints]:
    """A cycle of sources [C] and how often each stands in it [S]; at least once.

    Each place goes to the source whose next turn is due first, of those that are not ahead of their share (Tijdeman,
    "The chairman assignment problem", 1980). That keeps each within one of its share at every place.
    """
    if len(weights) == 1:
        return np.zeros(1, np.int64), np.ones(1, np.int64)
    exact = np.asarray(weights, np.float64) / sum(weights) * CYCLE
    counts = np.maximum(np.floor(exact).astype(np.int64), 1)
    for _ in range(int(CYCLE - counts.sum())):
        counts[np.argmax(exact - counts)] += 1
    for _ in range(int(counts.sum() - CYCLE)):  # where sources of tiny weight were given a place
        counts[np.argmax(np.where(counts > 1, counts - exact, -np.inf))] -= 1
    taken, pattern = np.zeros_like(counts), np.empty(CYCLE, np.int64)
    for place in range(CYCLE):
        behind = taken * CYCLE < counts * (place + 1)
        due = np.where(behind, (taken + 1) * CYCLE // counts, np.iinfo(np.int64).max)
        pattern[place] = np.argmin(due)
        taken[pattern[place]] += 1
    return pattern, counts


def hash_words(*words: int | Ints) -> Words:
    """64 well mixed bits of integers, broadcast (splitmix64): the same in every version of numpy."""
    state = np.zeros(1, np.uint64)
    for word in words:
        state = (state ^ np.asarray(word).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return state


def permute(places: Ints, size: int, keys: Words) -> Ints:
    """Where the permutation of range(size) that a key names takes each place.

    A Feistel network permutes the next power of two; a value beyond `size` is permuted again until it is below it.
    """
    bits = max(2, (size - 1).bit_length())
    low, high = np.uint64(bits // 2), np.uint64(bits - bits // 2)
    values, keys = places.astype(np.uint64), np.broadcast_to(keys, places.shape)
    todo = np.arange(len(values))
    while len(todo):
        value, key = values[todo], keys[todo]
        for turn in range(ROUNDS):
            kept, moved = (low, high) if turn % 2 == 0 else (high, low)
            right = value & ((np.uint64(1) << kept) - np.uint64(1))
            mixed = hash_words((key + np.uint64(turn)).view(np.int64), right.view(np.int64)) >> (np.uint64(64) - moved)
            value = (right << moved) | ((value >> kept) ^ mixed)
        values[todo] = value
        todo = todo[value >= np.uint64(size)]
    return values.astype(np.int64)
