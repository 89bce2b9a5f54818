"""Our attention against torch's fused kernel."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Variant, agree, compare, positive, start
from benchmarks.report import report
from opensiglip.models.attention import attention


def bench(
    images: int = 64,
    tokens: int = 64,
    heads: int = 4,
    width: int = 128,
    rounds: int = 9,
    device: str = "auto",
    out: Path = Path("runs/bench"),
) -> None:
    """Our attention against torch's fused kernel, forward and backward, bfloat16; agreement is checked first.

    Args:
        images: images per batch.
        tokens: tokens per image.
        heads: attention heads.
        width: width of the tokens.
        rounds: measurements of each variant, taken in turn; the median is reported.
        device: auto, cpu or cuda.
        out: folder for the JSON and the plot.
    """
    positive(images=images, tokens=tokens, heads=heads, width=width, rounds=rounds)
    place, dtype = start(device), torch.bfloat16
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(images, heads, tokens, width // heads, generator=generator) for _ in range(3)]
    inputs = [part.to(place, dtype).requires_grad_() for part in parts]
    kernels: dict[str, Callable[..., Tensor]] = {"torch sdpa": F.scaled_dot_product_attention, "opensiglip": attention}

    def step(name: str) -> tuple[Tensor, ...]:
        result = kernels[name](*inputs)
        return result, *torch.autograd.grad(result.sum(), inputs)

    gaps = agree({name: step(name) for name in kernels}, "torch sdpa", 0.05)  # bfloat16 has 8 bits
    floor = 3 * 4 * images * tokens**2 * width
    variants = [Variant(name, partial(step, name), floor, facts={"off by": gaps[name]}) for name in kernels]
    rows = compare(f"{tokens} tokens", variants, "torch sdpa", place, rounds, dtype)
    report("attention", rows, out, place)
