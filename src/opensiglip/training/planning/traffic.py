"""Bytes that a rank sends in a step: gradients, and the pairwise losses by our ring and by gathering."""

from dataclasses import dataclass

FLOAT32 = 4


@dataclass(frozen=True)
class Traffic:
    """Bytes that one rank sends in one step."""

    gradients: int  # ring all-reduce; sharded: weights gathered twice, gradients scattered
    ring: int  # of the pairwise losses, as `train` does: blocks of text embeddings, and their gradients behind them
    gather: int  # the same losses with all embeddings gathered and their gradients scattered


def traffic(weights: int, trained: int, examples: int, width: int, losses: int, ranks: int, shard: bool) -> Traffic:
    """Of `weights` bytes, `trained` of them, and `losses` comparisons of `examples` pairs a rank, `width` wide."""
    others = ranks - 1
    block = examples * width * FLOAT32
    exchanged = 2 * weights + trained if shard else 2 * trained
    ring = others * block + ranks * block if others else 0
    gather = 2 * 2 * others * block  # images and texts, there and back
    return Traffic(others * exchanged // ranks, losses * ring, losses * gather)
