"""The image and text towers: our short forward over Hugging Face's Siglip modules (equal to theirs to 0.0)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SiglipTextModel, SiglipVisionModel

from opensiglip.types import Features


class Vision(nn.Module):
    """ViT with learned positions and, where there is one, a MAP head.    (SigLIP; big_vision models/vit.py)"""

    def __init__(self, tower: SiglipVisionModel) -> None:
        super().__init__()
        self.tower = tower
        self.patch = tower.embeddings.patch_embedding.kernel_size[0]
        self.width = tower.embeddings.embed_dim

    def forward(self, pixels: Tensor) -> Features:
        """pixels [B, 3, H, W] in [-1, 1] -> tokens [B, N, D] after the final norm, and their MAP pooling [B, D]."""
        embeddings = self.tower.embeddings
        x = embeddings.patch_embedding(pixels).flatten(2).mT
        x = x + self.positions(pixels.shape[-2] // self.patch, pixels.shape[-1] // self.patch)
        tokens = self.tower.post_layernorm(self.tower.encoder(inputs_embeds=x).last_hidden_state)
        return Features(self.tower.head(tokens) if self.tower.config.vision_use_head else None, tokens)

    def positions(self, height: int, width: int) -> Tensor:
        """Position embeddings [1, height * width, D] for that many patches, bilinear where the image has another size.

        The library resizes bicubically; big_vision and SigLIP 2 do it bilinearly (models/vit.py:306-321).
        """
        table = self.tower.embeddings.position_embedding.weight
        side = int(len(table) ** 0.5)
        if (height, width) == (side, side):
            return table[None]
        grid = table.float().unflatten(0, (1, side, side)).permute(0, 3, 1, 2)
        resized = F.interpolate(grid, size=(height, width), mode="bilinear", antialias=True, align_corners=False)
        return resized.flatten(2).mT.to(table.dtype)


class Text(nn.Module):
    """Bidirectional transformer over exactly `length` tokens, no padding mask; pools the last position.

    That position is usually padding, which the tower learns to summarise at (big_vision text_transformer.py:50,82-84):
    an attention mask, or another amount of padding, changes the embedding.
    """

    def __init__(self, tower: SiglipTextModel) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, ids: Tensor) -> Features:
        """ids [B, L] -> pooled [B, D], tokens [B, L, D]."""
        x = self.tower.encoder(inputs_embeds=self.tower.embeddings(ids)).last_hidden_state
        tokens = self.tower.final_layer_norm(x)
        return Features(self.tower.head(tokens[:, -1]), tokens)


@torch.no_grad()
def initialise(tower: nn.Module) -> None:
    """Make Hugging Face's initialisation flax's where it is not: the MAP head's attention, xavier per projection."""
    for module in tower.modules():
        if isinstance(module, nn.MultiheadAttention):
            for part in module.in_proj_weight.chunk(3):
                nn.init.xavier_uniform_(part)
            nn.init.zeros_(module.in_proj_bias)
            nn.init.xavier_uniform_(module.out_proj.weight)
            nn.init.zeros_(module.out_proj.bias)
