"""What ranks say to one another. On one process everything here is the identity."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from opensiglip.errors import UserError

T = TypeVar("T")
LOST = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")  # in what torch says of a rank gone
LAUNCHER = 25.0  # seconds that a launcher may take to end the ranks that are left


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
    """Each tensor's mean over all ranks, by one exchange in the widest of their dtypes, float32 at least; detached."""
    if not tensors:
        return {}
    dtype = reduce(torch.promote_types, [tensor.dtype for tensor in tensors.values()], torch.float32)
    rows = [tensor.detach().to(dtype).flatten() for tensor in tensors.values()]
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


def from_first(value: T) -> T:
    """The first rank's value, on all ranks."""
    if world()[1] == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def gathered(rows: Tensor) -> Tensor:
    """Every rank's rows [N, ...], one rank after the other; as many on each."""
    ranks = world()[1]
    if ranks == 1:
        return rows
    plain = _bytes(rows)
    parts = [torch.empty_like(plain) for _ in range(ranks)]
    dist.all_gather(parts, plain)
    return torch.cat(parts).view(rows.dtype)


def dealt(rows: Tensor, owners: Sequence[int]) -> Tensor:
    """This rank's equal share of rows that lie on several ranks; the share of the first rank comes first.

    owners [N]: the rank that holds each of all ranks' rows, ascending, so most are where they belong; `rows`: those
    of this rank, in that order.
    """
    rank, ranks = world()
    if ranks == 1:
        return rows
    share = len(owners) // ranks
    sends = [sum(one == rank for one in owners[to * share : (to + 1) * share]) for to in range(ranks)]
    receives = [owners[rank * share : (rank + 1) * share].count(one) for one in range(ranks)]
    plain = _bytes(rows)
    got = plain.new_empty(share, *plain.shape[1:])
    dist.all_to_all_single(got, plain, receives, sends)
    return got.view(rows.dtype)


def first_ranks(numbers: Tensor) -> Tensor:
    """The first rank's tensor on all ranks, in place."""
    if world()[1] > 1:
        dist.broadcast(numbers, 0)
    return numbers


def ring(
    mine: Sequence[Tensor],
    visit: Callable[[Sequence[Tensor], bool], Tensor | None],
    join: Callable[[Tensor, Tensor], Tensor] = torch.add,
) -> Tensor | None:
    """Call `visit(block, is it ours?)` with every rank's tensors `mine`, ours first; join all ranks' results for ours.

    Blocks travel while they are visited: a rank sends a block on before it visits it, and the block's joined results
    follow one turn behind. Holds two blocks at most. Same shapes on every rank; `visit` returns a tensor everywhere, or
    None everywhere.
    """
    rank, ranks = world()
    block: Sequence[Tensor] = [x.contiguous() for x in mine]
    joined = None
    for turn in range(ranks):
        onward = list(block) if turn < ranks - 1 else []
        arrive = _pass_on([*onward, joined] if joined is not None else onward)
        result = visit(block, turn == 0)
        arrived = arrive()
        if result is not None:
            joined = join(arrived.pop(), result) if turn else result
        if onward:
            block = arrived
    if ranks > 1 and joined is not None:
        joined = _pass_on([joined])()[0]  # home
    return joined


def _pass_on(tensors: list[Tensor]) -> Callable[[], list[Tensor]]:
    """Start sending to the next rank and receiving the like from the one before; the result waits for it."""
    if not tensors:
        return list
    rank, ranks = world()
    new = [torch.empty_like(x) for x in tensors]
    sends = [dist.P2POp(dist.isend, x, (rank + 1) % ranks) for x in tensors]
    receives = [dist.P2POp(dist.irecv, x, (rank - 1) % ranks) for x in new]
    works = dist.batch_isend_irecv(sends + receives)

    def arrive() -> list[Tensor]:
        for work in works:
            work.wait()
        return new

    return arrive


def _bytes(rows: Tensor) -> Tensor:
    """As ranks exchange them: not every backend takes bool."""
    return rows.contiguous().view(torch.uint8) if rows.dtype == torch.bool else rows.contiguous()


def meet_again(backend: str | None) -> None:
    """Make the group of ranks that torchrun has started again; nothing at the first start, where Accelerate makes it.

    torchrun keeps its store over restarts, and in it the addresses of ranks that are gone: the new ones get a prefix.
    """
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if restarts != "0":
        store, rank, ranks = next(dist.rendezvous("env://"))
        dist.init_process_group(
            backend, store=dist.PrefixStore(f"restart{restarts}", store), rank=rank, world_size=ranks
        )


@contextmanager
def lost_ranks_said(asked: Callable[[], bool]) -> Iterator[None]:
    """Inside, a rank that another one has left ends with a sentence.

    It leaves its launcher the time to end it before: that one knows which rank failed, and why. `asked` says whether
    the launcher has done so already, by the signal SIGTERM: then it ends by that signal and says nothing.
    """
    try:
        yield
    except RuntimeError as error:
        if world()[1] == 1 or not any(word in str(error) for word in LOST):
            raise
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if asked():
                signal.raise_signal(signal.SIGTERM)
        time.sleep(LAUNCHER)
        rank, ranks = world()
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"rank {rank} of {ranks} lost contact with another rank ({reason}), whose own error says why; fix the "
            "cause and continue with --resume."
        ) from None


@contextmanager
def meeting(file: Path, rank: int, ranks: int) -> Iterator[None]:
    """Inside, this process is one of `ranks` on this machine's CPU, which find each other through a file."""
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()
