"""Our Muon against torch's, and against AdamW: the optimizer's step alone."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.measure import Variant, agree, compare, positive, start
from benchmarks.report import report
from opensiglip.optim import BETAS
from opensiglip.training.optimizers.muon import Muon

OURS, TORCH, LR = "opensiglip", "torch.optim.Muon", 0.001


def bench(
    width: int = 384,
    depth: int = 2,
    rounds: int = 3,
    device: str = "auto",
    out: Path = Path("runs/bench"),
) -> None:
    """One step of Muon on the matrices of a tower's layers; that ours and torch's do the same is checked first.

    Args:
        width: of the layers; their MLPs are four times as wide.
        depth: layers, of six matrices each.
        rounds: measurements of each variant, taken in turn; the median is reported.
        device: auto, cpu or cuda.
        out: folder for the JSON and the plot.
    """
    positive(width=width, depth=depth, rounds=rounds)
    place = start(device)
    shapes = [*[(width, width)] * 4, (4 * width, width), (width, 4 * width)] * depth
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(shape, generator=generator).to(place) for shape in shapes]

    def fresh() -> list[nn.Parameter]:
        weights = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        return weights

    def optimizers() -> dict[str, torch.optim.Optimizer]:
        return {
            OURS: Muon(fresh(), lr=LR),
            TORCH: torch.optim.Muon(fresh(), lr=LR, adjust_lr_fn="match_rms_adamw"),
            "torch.optim.AdamW, fused": torch.optim.AdamW(fresh(), lr=LR, betas=BETAS, fused=True),
        }

    compared = optimizers()
    both: dict[str, Sequence[Tensor]] = {name: updates(compared[name]) for name in (OURS, TORCH)}
    gaps = agree(both, TORCH, 0.05)  # torch's multiplies in bfloat16, of 8 bits
    variants = [
        Variant(name, one.step, facts={"off by": gaps[name]} if name in gaps else {})
        for name, one in optimizers().items()
    ]
    rows = compare(f"width {width} depth {depth}", variants, TORCH, place, rounds, torch.float32)
    report("muon", rows, out, place)


def updates(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """What the first step adds to weights of 0."""
    optimizer.step()
    return [weight.detach() for group in optimizer.param_groups for weight in group["params"]]
