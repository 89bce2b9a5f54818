"""Images that are the same, or as good as: by a hash of the file, and by one of what is seen.

The second is dHash (N. Krawetz, "Kind of like that", 2013): the image at 9 x 8 pixels in grey, a bit for each pair of
neighbours in a row. It changes little with size, format and quality.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional

Words = NDArray[np.uint64]
Ints = NDArray[np.int64]

NEAR = 3  # bits of 64 in which two hashes may differ: then one of four bands of 16 bits is the same
PLAIN = 8  # bits set, or not set: a hash of fewer says nothing but that the image is plain
MOST = 500  # neighbours in a band that each hash is compared with


def perceptual_hash(image: Tensor) -> int:
    """64 bits of what is seen in an image [3, H, W] uint8."""
    grey = functional.resize(image, [8, 9], antialias=True).float().mean(0).numpy()
    return int(np.packbits(grey[:, 1:] > grey[:, :-1]).view(">u8")[0])


@dataclass(frozen=True)
class Clusters:
    """Which rows show the same image: `labels` [N], the number of the first row of each one's cluster."""

    labels: Ints
    complete: bool = True  # False where so many look alike that not every pair was compared

    @property
    def repeated(self) -> int:
        """Rows that repeat an earlier one."""
        return len(self.labels) - len(np.unique(self.labels))

    def largest(self, count: int, members: int) -> list[Ints]:
        """The rows of the largest clusters of two or more, at most `members` of each."""
        firsts, sizes = np.unique(self.labels, return_counts=True)
        order = np.argsort(-sizes, kind="stable")[:count]
        return [np.flatnonzero(self.labels == firsts[at])[:members] for at in order if sizes[at] > 1]


def same_files(digests: Words) -> Clusters:
    """Clusters of equal digests [N] of files."""
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    return Clusters(first[inverse].astype(np.int64))


def look_alikes(hashes: Words) -> tuple[Clusters, int]:
    """Clusters of perceptual hashes [N] that are within 3 bits, step by step; and how many are too plain to tell."""
    words, inverse = np.unique(hashes, return_inverse=True)
    bits = np.bitwise_count(words)
    plain = (bits < PLAIN) | (bits > 64 - PLAIN)
    labels, complete = np.arange(len(words)), True
    for shift in range(0, 64, 16):
        bands = (words >> np.uint64(shift)) & np.uint64(0xFFFF)
        order = np.argsort(bands, kind="stable")
        order = order[~plain[order]]
        for step in range(1, len(order)):
            one, other = order[:-step], order[step:]
            alike = bands[one] == bands[other]
            if not alike.any():
                break
            if step > MOST:
                complete = False
                break
            one, other = one[alike], other[alike]
            near = np.bitwise_count(words[one] ^ words[other]) <= NEAR
            labels = joined(labels, one[near], other[near])
    lone = plain[inverse]
    clusters = np.where(lone, len(words) + np.arange(len(hashes)), labels[inverse])
    _, first, inverse = np.unique(clusters, return_index=True, return_inverse=True)
    return Clusters(first[inverse].astype(np.int64), complete), int(lone.sum())


def among(hashes: Words, known: Words) -> NDArray[np.bool_]:
    """Which perceptual hashes [N] are within 3 bits of one of `known` [M], and not too plain to tell: [N]."""
    bits = np.bitwise_count(hashes)
    found = np.zeros(len(hashes), bool)
    asked = np.flatnonzero((bits >= PLAIN) & (bits <= 64 - PLAIN))
    for shift in map(np.uint64, range(0, 64, 16)):
        bands = (known >> shift) & np.uint64(0xFFFF)
        order = np.argsort(bands, kind="stable")
        wanted = (hashes[asked] >> shift) & np.uint64(0xFFFF)
        first, end = (np.searchsorted(bands[order], wanted, side) for side in ("left", "right"))
        for at, start, stop in zip(asked.tolist(), first.tolist(), end.tolist(), strict=True):
            near = np.bitwise_count(known[order[start:stop]] ^ hashes[at]) <= NEAR
            found[at] |= bool(near.any())
    return found


def joined(labels: Ints, one: Ints, other: Ints) -> Ints:
    """The smallest label of each cluster once the pairs are of one cluster."""
    while len(one):
        least = np.minimum(labels[one], labels[other])
        before = labels.copy()
        for side in (labels[one], labels[other], one, other):
            np.minimum.at(labels, side, least)
        labels = labels[labels]
        if np.array_equal(before, labels):
            break
    return labels
