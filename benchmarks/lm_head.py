"""The vocabulary's cross-entropy: ours in chunks on real tokens, against losses that hold all logits."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Row, Variant, agree, compare, peer, positive, start
from benchmarks.report import report
from opensiglip.losses.cross_entropy import linear_cross_entropy

IGNORED = -100
PLAIN = "F.cross_entropy"
Head = Callable[
    [Tensor, Tensor, Tensor], Tensor
]  # hidden, weight, targets (IGNORED is padding) -> mean over the others


def bench(
    vocabularies: tuple[int, ...] = (32_000,),
    tokens: int = 2048,
    width: int = 768,
    fill: float = 0.35,
    rounds: int = 3,
    device: str = "auto",
    out: Path = Path("runs/bench"),
) -> None:
    """Output layer and cross-entropy, forward and backward in float32, on full and on padded rows.

    Args:
        vocabularies: sizes V to measure.
        tokens: tokens of the batch, padding included.
        width: of the hidden states.
        fill: fraction of the tokens that are not padding in the padded case.
        rounds: measurements of each variant, taken in turn; the median is reported.
        device: auto, cpu or cuda.
        out: folder for the JSON and the plot.
    """
    positive(vocabularies=vocabularies, tokens=tokens, width=width, fill=fill, rounds=rounds)
    place, rows = start(device), list[Row]()
    for vocabulary in vocabularies:
        for share in (1.0, fill):
            rows += _case(vocabulary, tokens, width, min(share, 1.0), place, rounds)
    report("lm-head", rows, out, place)


def _case(vocabulary: int, tokens: int, width: int, fill: float, place: torch.device, rounds: int) -> list[Row]:
    given, heads = Tokens.new(vocabulary, tokens, width, fill, place), heads_of(place)
    gaps = {
        name: agree({PLAIN: given.step(heads[PLAIN]), name: given.step(head)}, PLAIN, 1e-3)[name]
        for name, head in heads.items()
    }
    variants = [given.variant(name, head, {"off by": gaps[name]}) for name, head in heads.items()]
    return compare(f"V {vocabulary} T {tokens} fill {fill:g}", variants, PLAIN, place, rounds, torch.float32)


@dataclass(frozen=True)
class Tokens:
    """Made-up hidden states [T, D], the weight [V, D] of the output layer, and targets [T] (IGNORED is padding)."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor

    @classmethod
    def new(cls, vocabulary: int, tokens: int, width: int, fill: float, place: torch.device) -> "Tokens":
        """`fill`: the share of the targets that is no padding; at least one is."""
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(tokens, width, generator=generator).to(place).requires_grad_()
        weight = (torch.randn(vocabulary, width, generator=generator) / width**0.5).to(place).requires_grad_()
        targets = torch.randint(vocabulary, (tokens,), generator=generator)
        live = torch.rand(tokens, generator=generator) < fill
        live[0] = True
        return cls(hidden, weight, targets.masked_fill(~live, IGNORED).to(place))

    def variant(self, name: str, head: Head, facts: dict[str, Any]) -> Variant:
        """Forward and backward of a head."""
        floor = 6.0 * int((self.targets != IGNORED).sum()) * self.weight.numel()
        return Variant(name, partial(self.step, head), floor, facts=facts | {"dW MiB": self.weight.nbytes >> 20})

    def step(self, head: Head) -> tuple[Tensor, ...]:
        """The loss and its gradients at the hidden states and the weight."""
        value = head(self.hidden, self.weight, self.targets)
        return value, *torch.autograd.grad(value, (self.hidden, self.weight))


def heads_of(place: torch.device) -> dict[str, Head]:
    heads: dict[str, Head] = {"opensiglip": _ours, PLAIN: _plain}
    if linear := getattr(F, "linear_cross_entropy", None):
        options: Any = getattr(F, "LinearCrossEntropyOptions", None)
        chunked = {"options": options()} if options is not None else {}
        heads["F.linear_cross_entropy"] = lambda h, w, y: linear(h, w, y, **chunked)
    else:
        print(f"left out: torch {torch.__version__} has no F.linear_cross_entropy")
    if place.type != "cuda":
        print("left out: liger-kernel and cut-cross-entropy need a CUDA device")
        return heads
    if (liger := peer("liger_kernel.transformers", "liger-kernel")) is not None:
        fused = liger.LigerFusedLinearCrossEntropyLoss(ignore_index=IGNORED)
        heads["liger-kernel"] = lambda h, w, y: fused(w, h, y)
    if (cce := peer("cut_cross_entropy", "cut-cross-entropy")) is not None:
        heads["cut-cross-entropy"] = lambda h, w, y: cce.linear_cross_entropy(h, w, y, ignore_index=IGNORED)
    return heads


def _ours(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    scored = (targets != IGNORED).nonzero()[:, 0]  # in training the loader hands this over
    weights = torch.full((len(scored),), 1 / len(scored), device=hidden.device)
    bias = torch.zeros(len(weight), device=hidden.device)
    return linear_cross_entropy(hidden[scored], weight, bias, targets[scored], weights)


def _plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight), targets, ignore_index=IGNORED)
