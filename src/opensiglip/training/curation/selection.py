"""Joint example selection: the scores of pairs, and blocked sampling from them.    (JEST, arXiv:2406.17711; ACID)

Of a super-batch of B examples, b are drawn in n chunks of b / n. s_ij is the score of image i with text j:

    s_ij = l_ij(learner) - l_ij(reference)    learnability (JEST, Sec. 3.2; SigLIP 2, Sec. 2.5)
    s_ij = -l_ij(reference)                   easy-reference
    s_ij = l_ij(learner)                      learner: what is hard now, as online filtering by loss has it

with the sigmoid's loss of a pair, l_ij = -log sigma(z_ij (t x_i.y_j + b)), z_ij = 1 if i = j else -1. The first chunk
is drawn by s_ii. Given the set S of those drawn, the next one is drawn without replacement with p(i) proportional to

    exp(s_ii + sum_{k in S} (s_ik + s_ki))    (JEST, Algorithm 1)

The sums grow by a chunk's rows and columns at a time, so memory is B b / n numbers, not B squared.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from opensiglip.float64 import widen

CURATE = 2  # first word of a generator's seed: what it is for (0: the order, 1: a visit)
LAST = -1e9  # the logit of an example without a text: it is taken where nothing else is left
SIGNS = {"learnability": (1.0, -1.0), "easy-reference": (0.0, -1.0), "learner": (1.0, 0.0)}  # of learner, reference


@dataclass(frozen=True)
class Pairs:
    """A super-batch as one model sees it; images and texts of length 1."""

    images: Tensor  # [B, D]
    texts: Tensor  # [B, D]
    scale: Tensor  # t, already exp'ed
    bias: Tensor

    def own(self) -> Tensor:
        """l_ii [B]."""
        return F.softplus(-(self.scale * (self.images * self.texts).sum(1) + self.bias))

    def others(self, rows: Tensor, columns: Tensor) -> Tensor:
        """l_ij [R, C] of the images `rows` and the texts `columns`, as pairs that do not belong together."""
        return F.softplus(self.scale * self.images[rows] @ self.texts[columns].T + self.bias)


@dataclass(frozen=True)
class Scores:
    """s of a super-batch: the models' losses, each with the sign that the method gives it."""

    models: Sequence[tuple[float, Pairs]]
    valid: Tensor  # [B] bool: has it a text?
    group: Tensor | None = None  # [B] int64: pairs of one group are no negatives, so they score nothing

    def own(self) -> Tensor:
        """s_ii [B]."""
        return torch.stack([sign * widen(pairs.own()) for sign, pairs in self.models]).sum(0)

    def others(self, chunk: Tensor) -> Tensor:
        """sum_{k in chunk} (s_ik + s_ki) [B]."""
        whole = torch.arange(len(self.valid), device=chunk.device)
        counts = (whole[:, None] != chunk) & self.valid[:, None] & self.valid[chunk]
        if self.group is not None:
            counts &= self.group[:, None] != self.group[chunk]
        total = widen(torch.zeros(len(whole), device=chunk.device))
        for sign, pairs in self.models:
            with_texts = torch.where(counts, pairs.others(whole, chunk), 0.0)
            with_images = torch.where(counts.T, pairs.others(chunk, whole), 0.0)
            total += sign * (widen(with_texts).sum(1) + widen(with_images).sum(0))
        return total


def chunk_sizes(count: int, chunks: int) -> list[int]:
    """`count` in `chunks` parts that differ by one at most, the larger ones first; none is empty."""
    chunks = min(chunks, count)
    return [count // chunks + (at < count % chunks) for at in range(chunks)]


def noise(seed: int, step: int, chunks: int, size: int) -> Tensor:
    """Gumbel numbers [chunks, B] float64, a pure function of (seed, step)."""
    return torch.from_numpy(np.random.default_rng([CURATE, seed, step]).gumbel(size=(chunks, size)))


def blocked_sampling(
    own: Tensor, others: Callable[[Tensor], Tensor], valid: Tensor, count: int, draws: Tensor
) -> Tensor:
    """The places [count] int64 of what is drawn, in ascending order, each once.

    own: s_ii [B]; others: of the places [C] of a chunk, sum_{k in chunk} (s_ik + s_ki) [B]; valid [B] bool; draws
    [chunks, B]: Gumbel numbers, as the largest of logits + Gumbel numbers are a draw without replacement from softmax
    (arXiv:1903.06059).
    """
    logits, taken = own.clone(), torch.zeros_like(valid)
    for gumbel, size in zip(draws, chunk_sizes(count, len(draws)), strict=False):
        keys = torch.where(valid, logits, LAST) + gumbel.to(logits)
        chunk = keys.masked_fill(taken, -torch.inf).topk(size).indices
        taken[chunk] = True
        logits = logits + others(chunk)
    return taken.nonzero()[:, 0]
