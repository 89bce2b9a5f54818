"""A start for short runs. Ours, for towers no wider than our size `tiny`; all others start as the papers' code does.

In a fresh ViT each layer adds nearly the same vector to all tokens: the mean of what it attends to. So only 4 % of the
output's variance distinguishes a token from its neighbours, and 7 % is its position; captions need neither, and train
even that away. Billions of examples restore it, but runs of 100,000 learned to name things and never where they are.
So here tokens start distinct: large patch embeddings and positions, small layers, and positions as waves, in which
neighbours are alike.    (waves: MoCo v3; big_vision models/vit.py "sincos2d")

The text tower pools a padding token, and padding and positions are the same in all texts: fresh embeddings of two texts
had a cosine of 0.995, and the contrastive loss stayed that of constant probabilities for more than 200 steps. With
large words and small positions it falls after 60 to 120.
"""

from typing import Any

import torch
from torch import Tensor, nn

from opensiglip.models.towers import Text

PATCH, PLACE, RESIDUAL = 6.8, 3.0, 0.1  # times SigLIP's patch embedding; deviation of places; times what layers add
TEXT_PLACE = 0.5  # deviation of positions in the decoder's texts, instead of 1 / sqrt(width)
WORD, WORD_PLACE = 1.0, 0.1  # deviation of the text tower's tokens, and of its positions, instead of the same
LONGEST_WAVE = 30.0  # over 2 pi, in patches


@torch.no_grad()
def short_start(model: Any) -> None:
    """Change a freshly initialised `Model` in place."""
    for name, parameter in model.named_parameters():
        if "position" in name:
            nn.init.normal_(parameter, std=TEXT_PLACE)
    if isinstance(model.text, Text):
        embeddings: Any = model.text.tower.embeddings
        nn.init.normal_(embeddings.token_embedding.weight, std=WORD)
        nn.init.normal_(embeddings.position_embedding.weight, std=WORD_PLACE)
    tower: Any = model.vision.tower
    places = tower.embeddings.position_embedding.weight  # [N, D]
    places.copy_(PLACE * 2**0.5 * waves(int(len(places) ** 0.5), places.shape[1]))
    tower.embeddings.patch_embedding.weight.mul_(PATCH)
    for layer in tower.encoder.layers:
        layer.self_attn.out_proj.weight.mul_(RESIDUAL)
        layer.mlp.fc2.weight.mul_(RESIDUAL)


def waves(side: int, width: int) -> Tensor:
    """Places of a square grid as sines and cosines [side * side, width]: a quarter each of x and y, slow to fast."""
    # transformers may hide linspace from `with torch.device(...)`, so it is told where to make its numbers.
    frequency = LONGEST_WAVE ** -torch.linspace(0, 1, width // 4, device=torch.get_default_device())
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    x, y = x.flatten()[:, None] * frequency, y.flatten()[:, None] * frequency
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], 1)
