"""The image and text towers: our short forward over Hugging Face's Siglip modules (equal to theirs to 0.0)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Siglip2TextModel, Siglip2VisionModel, SiglipTextModel, SiglipVisionModel

from opensiglip.models.resize import resize_positions
from opensiglip.types import Features


class Vision(nn.Module):
    """ViT with learned positions and, where there is one, a MAP head.    (SigLIP; big_vision models/vit.py)

    A NaFlex tower (Siglip2VisionModel) is the same network on square images: its patch embedding is the convolution as
    a matrix.
    """

    def __init__(self, tower: SiglipVisionModel | Siglip2VisionModel) -> None:
        super().__init__()
        self.tower = tower
        assert isinstance(tower.embeddings.patch_size, int)
        self.patch = tower.embeddings.patch_size
        self.width = int(tower.config.hidden_size)

    def forward(self, pixels: Tensor, hidden: Tensor | None = None, token: Tensor | None = None) -> Features:
        """pixels [B, 3, H, W] in [-1, 1] -> tokens [B, N, D] after the final norm, and their MAP pooling [B, D].

        Patches at the places `hidden` [B, M] int64 are replaced by `token` [D] before positions are added, so that the
        tower is told where it does not see.    (iBOT; DINOv2 models/vision_transformer.py:216-221)
        """
        x = self.patches(pixels)
        if hidden is not None and token is not None:
            x = x.scatter(1, hidden[..., None].expand(-1, -1, x.shape[-1]), token.to(x.dtype).expand(*hidden.shape, -1))
        x = x + self.positions(pixels.shape[-2] // self.patch, pixels.shape[-1] // self.patch)
        tokens = self.tower.post_layernorm(self.tower.encoder(inputs_embeds=x).last_hidden_state)
        return Features(self.pool(tokens) if self.tower.config.vision_use_head else None, tokens)

    def patches(self, pixels: Tensor) -> Tensor:
        """pixels [B, 3, H, W] -> patch embeddings [B, N, D], rows first, without positions."""
        embed = self.tower.embeddings.patch_embedding
        if isinstance(embed, nn.Conv2d):
            return embed(pixels).flatten(2).mT
        kernel = embed.weight.unflatten(1, (self.patch, self.patch, -1)).permute(0, 3, 1, 2)  # columns are y, x, colour
        return F.conv2d(pixels, kernel, embed.bias, stride=self.patch).flatten(2).mT

    def pool(self, tokens: Tensor, probe: Tensor | None = None) -> Tensor:
        """MAP pooling of tokens [B, N, D] -> [B, D]; with another `probe` [1, 1, D] than the tower's, by that."""
        head = self.tower.head
        if probe is None:
            return head(tokens)
        x = head.attention(probe.to(tokens.dtype).expand(len(tokens), -1, -1), tokens, tokens)[0]
        return (x + head.mlp(head.layernorm(x)))[:, 0]

    def positions(self, height: int, width: int) -> Tensor:
        """Position embeddings [1, height * width, D] for so many patches, resized for images of another size."""
        return resize_positions(self.tower.embeddings.position_embedding.weight, height, width)[None]


class Text(nn.Module):
    """Bidirectional transformer over exactly `length` tokens, no padding mask; pools the last position.

    That position is usually padding, which the tower learns to summarise at (big_vision text_transformer.py:50,82-84):
    an attention mask, or another amount of padding, changes the embedding.
    """

    def __init__(self, tower: SiglipTextModel | Siglip2TextModel) -> None:
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
