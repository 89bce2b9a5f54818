"""flax's initialisers, where torch's or transformers' of the same name differ."""

import math

import torch
from torch import Tensor, nn

CUT_AT_TWO = 0.87962566103423978  # deviation of a standard normal that is cut at +-2


@torch.no_grad()
def lecun_normal_(weight: Tensor) -> Tensor:
    """A normal of deviation 1 / sqrt(fan-in), cut at two deviations of what is cut.    (flax's default kernel_init)

    weight [out, in, ...] of a linear map or a convolution. transformers' cuts at +-2 whatever the deviation, which cuts
    nothing off, and still divides by what a cut leaves: 1.137 times too wide.
    """
    deviation = 1 / math.sqrt(weight[0].numel()) / CUT_AT_TWO
    return nn.init.trunc_normal_(weight, std=deviation, a=-2 * deviation, b=2 * deviation)


@torch.no_grad()
def xavier_uniform_probe_(probe: Tensor) -> Tensor:
    """flax's xavier_uniform of a probe [1, 1, D]: fans 1 and D.    (big_vision models/vit.py, MAPHead)

    torch takes both fans for D, which makes it sqrt 2 too small.
    """
    bound = math.sqrt(6 / (1 + probe.shape[-1]))
    return nn.init.uniform_(probe, -bound, bound)
