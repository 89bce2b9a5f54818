"""The pairwise losses over ranks are those of one: values, and gradients that came home around the ring."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from forkserver import start_ranks
from torch import Tensor

from opensiglip.losses.pairwise import sigmoid_loss, softmax_loss

TOTAL, EXACT = 18, 1e-12
KINDS = [(loss, how) for loss in ("sigmoid", "softmax") for how in ("no groups", "left out", "multi-positive")]
Measured = dict[tuple[str, str], dict[str, Tensor]]


def inputs() -> tuple[Tensor, ...]:
    """rows, columns, scale, bias, valid and group of the global batch; the second of three ranks has a single text."""
    generator = torch.Generator().manual_seed(0)
    x, y = (F.normalize(torch.randn(TOTAL, 4, generator=generator).double(), dim=-1) for _ in range(2))
    valid = torch.tensor([True] * 4 + [False] * 3 + [True] + [False] * 4 + [True] * 6)
    group = torch.arange(TOTAL) // 2 * 7 % 5  # of one image within a rank, and on all of them
    return x, y, torch.tensor([7.0]).double(), torch.tensor([-2.0]).double(), valid, group


def measured(loss: str, how: str, share: slice) -> dict[str, Tensor]:
    """The loss of a share of the batch and its gradients."""
    x, y, scale, bias, valid, group = inputs()
    leaves = [leaf.requires_grad_() for leaf in (x[share].clone(), y[share].clone(), scale, bias)]
    used = leaves if loss == "sigmoid" else leaves[:3]
    value = (sigmoid_loss if loss == "sigmoid" else softmax_loss)(
        *used, valid[share], None if how == "no groups" else group[share], multi_positive=how == "multi-positive"
    )
    grads = torch.autograd.grad(value, used)
    return {"loss": value.detach()} | dict(zip(("x", "y", "scale", "bias"), grads, strict=False))


def work(rank: int, ranks: int, folder: str) -> None:
    """One rank's share."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    size = TOTAL // ranks
    torch.save({kind: measured(*kind, slice(rank * size, (rank + 1) * size)) for kind in KINDS}, f"{folder}/rank{rank}")
    dist.barrier()
    os._exit(0)  # all is written: gloo's threads may wait for ever, at the end, for a rank that has gone


@pytest.fixture(scope="module", params=[2, 3], ids=["two ranks", "three ranks"])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Measured]:
    folder = tmp_path_factory.mktemp("ring")
    start_ranks(work, (request.param, str(folder)), request.param)
    return [torch.load(Path(folder) / f"rank{rank}") for rank in range(request.param)]


@pytest.mark.parametrize("kind", KINDS, ids=" ".join)
def test_ranks_give_the_loss_and_gradients_of_one(kind: tuple[str, str], ranks: list[Measured]) -> None:
    alone = measured(*kind, slice(0, TOTAL))
    for key in ("x", "y"):
        torch.testing.assert_close(torch.cat([rank[kind][key] for rank in ranks]), alone[key], rtol=0, atol=EXACT)
        assert alone[key].abs().max() > 0.1
    for key in alone.keys() - {"x", "y"}:
        torch.testing.assert_close(sum(rank[kind][key] for rank in ranks), alone[key], rtol=0, atol=EXACT)
