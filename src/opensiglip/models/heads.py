"""The projection head of self-distillation: features to scores of learned prototypes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opensiglip.models.sizes import HeadShape

STD, WIDTH = 0.02, 2048  # DINO's deviation, at its hidden width


class Head(nn.Module):
    """MLP of three layers, L2-normalised bottleneck, weight-normed prototypes.    (DINOv2 layers/dino_head.py:12-58)

    Prototypes are normalised with their gain fixed at 1 (iBOT's norm_last_layer), so a score is a cosine in [-1, 1].
    """

    def __init__(self, width: int, shape: HeadShape) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.Linear(width, shape.hidden),
                nn.Linear(shape.hidden, shape.hidden),
                nn.Linear(shape.hidden, shape.bottleneck),
            ]
        )
        self.prototypes = nn.Parameter(torch.empty(shape.prototypes, shape.bottleneck))
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            std = STD * (WIDTH / layer.in_features) ** 0.5 if shape.by_width else STD
            nn.init.trunc_normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
        nn.init.trunc_normal_(self.prototypes, std=STD)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [..., D] -> (its place [..., P], the prototypes [K, P]), of length 1: their products are the scores."""
        first, second, third = self.layers
        x = third(F.gelu(second(F.gelu(first(x)))))
        return F.normalize(x, dim=-1, eps=1e-6), F.normalize(self.prototypes, dim=-1)
