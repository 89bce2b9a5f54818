"""The pairwise losses over three ranks are those of one: values, and gradients that came home around the ring."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor

from opensiglip.losses.fused import sigmoid_loss, softmax_loss

RANKS, SHARE, EXACT = 3, 5, 1e-12
LOSSES = ("sigmoid", "softmax")


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """rows, columns, scale, bias, valid of the global batch; the second rank has a single text."""
    generator = torch.Generator().manual_seed(0)
    x, y = (F.normalize(torch.randn(RANKS * SHARE, 4, generator=generator).double(), dim=-1) for _ in range(2))
    valid = torch.tensor([True] * 4 + [False] * 2 + [True] + [False] * 3 + [True] * 5)
    return x, y, torch.tensor([7.0]).double(), torch.tensor([-2.0]).double(), valid


def measured(name: str, share: slice) -> dict[str, Tensor]:
    """The loss of a share of the batch and its gradients."""
    x, y, scale, bias, valid = inputs()
    leaves = [leaf.requires_grad_() for leaf in (x[share].clone(), y[share].clone(), scale, bias)]
    used = leaves if name == "sigmoid" else leaves[:3]
    loss = (sigmoid_loss if name == "sigmoid" else softmax_loss)(*used, valid[share])
    grads = torch.autograd.grad(loss, used)
    return {"loss": loss.detach()} | dict(zip(("x", "y", "scale", "bias"), grads, strict=False))


def work(rank: int, folder: str) -> None:
    """One rank's share."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    share = slice(rank * SHARE, (rank + 1) * SHARE)
    torch.save({name: measured(name, share) for name in LOSSES}, f"{folder}/rank{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ring")
    mp.spawn(work, (str(folder),), nprocs=RANKS)
    return [torch.load(Path(folder) / f"rank{rank}") for rank in range(RANKS)]


@pytest.mark.parametrize("name", LOSSES)
def test_three_ranks_give_the_loss_and_gradients_of_one(name: str, ranks: list[dict[str, Any]]) -> None:
    alone = measured(name, slice(0, RANKS * SHARE))
    for key in ("x", "y"):
        torch.testing.assert_close(torch.cat([rank[name][key] for rank in ranks]), alone[key], rtol=0, atol=EXACT)
        assert alone[key].abs().max() > 0.1
    for key in alone.keys() - {"x", "y"}:
        torch.testing.assert_close(sum(rank[name][key] for rank in ranks), alone[key], rtol=0, atol=EXACT)
