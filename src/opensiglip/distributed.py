"""Ranks: the only file that imports torch.distributed. On one process everything here is the identity."""

from collections import Counter
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> tuple[int, int]:
    """This process's rank, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum of `x` over all ranks (in place where there are several)."""
    if world()[1] > 1:
        dist.all_reduce(x)
    return x


def mean_over_ranks(x: Tensor) -> Tensor:
    """The mean of `x` over all ranks."""
    return sum_over_ranks(x) / world()[1]


def average(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor's mean over all ranks in float32, by one exchange; detached."""
    if not tensors:
        return {}
    rows = [tensor.detach().float().flatten() for tensor in tensors.values()]
    means = mean_over_ranks(torch.cat(rows)).split([len(row) for row in rows])
    return {name: mean.view_as(x) for (name, x), mean in zip(tensors.items(), means, strict=True)}


def sum_counters(number: int, counter: Counter[str]) -> tuple[int, Counter[str]]:
    """A number and a counter, each summed over all ranks."""
    ranks = world()[1]
    if ranks == 1:
        return number, counter
    gathered: list[tuple[int, Counter[str]]] = [(number, counter)] * ranks
    dist.all_gather_object(gathered, (number, counter))
    return sum(n for n, _ in gathered), sum((c for _, c in gathered), Counter())


def ring(mine: Tensor) -> Iterator[tuple[Tensor, Tensor, bool | None]]:
    """Each rank's rows in turn, ours first, with a slope that travels along: (block, slope, is it ours?).

    The receiver adds its gradient to `slope` in place. After the last turn comes (our block, the sum of what all ranks
    added to its slope, None). Never holds more than two blocks.
    """
    rank, ranks = world()
    block, slope = mine.contiguous(), torch.zeros_like(mine, memory_format=torch.contiguous_format)
    for turn in range(ranks):
        yield block, slope, turn == 0
        if ranks > 1:
            new = torch.empty_like(block), torch.empty_like(slope)
            sends = [dist.P2POp(dist.isend, x, (rank + 1) % ranks) for x in (block, slope)]
            receives = [dist.P2POp(dist.irecv, x, (rank - 1) % ranks) for x in new]
            for work in dist.batch_isend_irecv(sends + receives):
                work.wait()
            block, slope = new
    yield block, slope, None
