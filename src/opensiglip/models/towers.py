"""The image and text towers: our short forward over Hugging Face's Siglip modules (equal to theirs to 0.0)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Siglip2TextModel, Siglip2VisionModel, SiglipTextModel, SiglipVisionModel
from transformers.models.siglip import modeling_siglip as siglip
from transformers.models.siglip2 import modeling_siglip2 as siglip2

from opensiglip.models.initialisation import lecun_normal_, xavier_uniform_probe_
from opensiglip.models.resize import resize_positions, text_places
from opensiglip.types import Features, Patches

MAP_HEADS = (siglip.SiglipMultiheadAttentionPoolingHead, siglip2.Siglip2MultiheadAttentionPoolingHead)
IMAGE_EMBEDDINGS = (siglip.SiglipVisionEmbeddings, siglip2.Siglip2VisionEmbeddings)


class Vision(nn.Module):
    """ViT with learned positions and, where there is one, a MAP head.    (SigLIP; big_vision models/vit.py)

    A NaFlex tower (Siglip2VisionModel) is the same network, its patch embedding the convolution as a matrix. It takes
    images of any aspect ratio as `Patches`, and whole images too.
    """

    def __init__(self, tower: SiglipVisionModel | Siglip2VisionModel) -> None:
        super().__init__()
        self.tower = tower
        assert isinstance(tower.embeddings.patch_size, int)
        self.patch = tower.embeddings.patch_size
        self.width = int(tower.config.hidden_size)

    def forward(
        self,
        image: Tensor | Patches,
        mask_indices: Tensor | None = None,
        token: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> Features:
        """image [B, 3, H, W] or patches, in [-1, 1] -> tokens [B, N, D] after the final norm, MAP pooling [B, D].

        With `kept` [B, K] int64 the layers read those of the patches alone, at their places in the whole image; -1 is
        padding.    (FLIP)

        Patches at `mask_indices` [B, M] int64 are replaced by `token` [D] before positions are added, so that the
        tower knows where it does not see.    (iBOT; DINOv2 models/vision_transformer.py:216-221)
        """
        x = self.patches(image)
        if mask_indices is not None and token is not None:
            x = x.scatter(
                1,
                mask_indices[..., None].expand(-1, -1, x.shape[-1]),
                token.to(x.dtype).expand(*mask_indices.shape, -1),
            )
        valid = None
        if isinstance(image, Patches):
            valid, x = image.valid, x + self.places(image)
        else:
            x = x + self.positions(image.shape[-2] // self.patch, image.shape[-1] // self.patch)
        if kept is not None:
            x, valid = select(x, kept), None if valid is None else kept >= 0
        mask = None if valid is None else valid[:, None, None]  # of keys alone: a query without a key gives NaN
        tokens = self.tower.post_layernorm(self.tower.encoder(inputs_embeds=x, attention_mask=mask).last_hidden_state)
        return Features(self.pool(tokens, valid=valid) if self.tower.use_head else None, tokens, valid)

    def patches(self, image: Tensor | Patches) -> Tensor:
        """image [B, 3, H, W] or patches -> patch embeddings [B, N, D], rows first, without positions."""
        embed = self.tower.embeddings.patch_embedding
        if isinstance(image, Patches):
            assert isinstance(embed, nn.Linear), "this tower takes whole images"
            return embed(image.values)
        if isinstance(embed, nn.Conv2d):
            return embed(image).flatten(2).mT
        kernel = embed.weight.unflatten(1, (self.patch, self.patch, -1)).permute(0, 3, 1, 2)  # rows: y, x, colour
        return F.conv2d(image, kernel, embed.bias, stride=self.patch).flatten(2).mT

    def pool(self, tokens: Tensor, probe: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        """MAP pooling of tokens [B, N, D], of those that are `valid` [B, N] -> [B, D].

        With another `probe` [1, 1, D] than the tower's, by that.
        """
        head = self.tower.head
        query = (head.probe if probe is None else probe).to(tokens.dtype).expand(tokens.shape[0], -1, -1)
        x = head.attention(query, tokens, tokens, key_padding_mask=None if valid is None else ~valid)[0]
        return (x + head.mlp(head.layernorm(x)))[:, 0]

    def alone(self, tokens: Tensor) -> Tensor:
        """tokens [..., D] -> [..., D]: MAP pooling of each by itself, a patch's way into the texts' space (ours).

        The softmax over one key is 1, so of the attention the value's and the output's projections are left.
        """
        head, width = self.tower.head, self.width
        weight, bias = head.attention.in_proj_weight[2 * width :], head.attention.in_proj_bias[2 * width :]
        x = head.attention.out_proj(F.linear(tokens, weight, bias))
        return x + head.mlp(head.layernorm(x))

    def positions(self, height: int, width: int) -> Tensor:
        """Position embeddings [1, height * width, D] for that many patches, resized where an image has another size."""
        return resize_positions(self.tower.embeddings.position_embedding.weight, height, width)[None]

    def places(self, image: Patches) -> Tensor:
        """Position embeddings [B, N, D] of patches, resized to each image's shape.

        `positions` for every image at once: bilinear resizing is linear and separable, so a patch at row y and column x
        has sum_ij a(y, i) b(x, j) table[i, j] with a and b the resizing's weights for its image's height and width: one
        product for the whole batch, without a loop.    (F.interpolate with antialias, which transformers calls for one
        image after the other)
        """
        table = self.tower.embeddings.position_embedding.weight
        exact = table.to(torch.promote_types(table.dtype, torch.float32))
        side = int(len(table) ** 0.5)
        number = (image.valid.cumsum(1) - 1).clamp(min=0)  # [B, N], of a patch among its image's
        height, width = image.shapes[:, :1], image.shapes[:, 1:]
        down = triangle(number // width, height, side, exact.dtype)
        across = triangle(number % width, width, side, exact.dtype)
        with torch.autocast(exact.device.type, enabled=False):
            return ((down[..., None] * across[..., None, :]).flatten(2) @ exact).to(table.dtype)


def select(tokens: Tensor, kept: Tensor) -> Tensor:
    """Of tokens [B, N, D] those at `kept` [B, K] int64; -1 is padding, and holds any."""
    return tokens.take_along_dim(kept.clamp(min=0)[..., None], 1)


def triangle(place: Tensor, size: Tensor, source: int, dtype: torch.dtype) -> Tensor:
    """Weights [B, N, source] that resize a line of `source` points to `size` [B, 1]: of its points `place` [B, N].

    Bilinear, antialiased, corners not aligned: a triangle around the point's centre, as wide as a source point or,
    where the line shrinks, as a new one.
    """
    scale = source / size.to(dtype)
    distance = torch.arange(source, device=place.device) + 0.5 - ((place + 0.5) * scale)[..., None]
    weights = (1 - distance.abs() / scale.clamp(min=1)[..., None]).clamp(min=0)
    return weights / weights.sum(-1, keepdim=True)


class Text(nn.Module):
    """Bidirectional transformer over exactly `length` tokens, no padding mask; pools the last position.

    That position is usually padding, which the tower learns to summarise at (big_vision text_transformer.py:50,82-84):
    an attention mask, or another amount of padding, changes the embedding.
    """

    def __init__(self, tower: SiglipTextModel | Siglip2TextModel) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, ids: Tensor) -> Features:
        """ids [B, L] -> pooled [B, D], tokens [B, L, D]; of fewer ids than `length`, as training may begin."""
        places = text_places(ids.shape[1], self.tower.config.max_position_embeddings, ids.device)
        return self.read(self.tower.embeddings(ids, places[None]))

    def read(self, embedded: Tensor) -> Features:
        """Words with their positions added [B, L, D] -> pooled [B, D], tokens [B, L, D]."""
        x = self.tower.encoder(inputs_embeds=embedded).last_hidden_state
        tokens = self.tower.final_layer_norm(x)
        return Features(self.tower.head(tokens[:, -1]), tokens)


@torch.no_grad()
def initialise(tower: nn.Module) -> None:
    """Make transformers' initialisation of SigLIP's towers flax's where it is not.

    The MAP head's attention is xavier-uniform projection by projection, its probe by flax's fans; patch embedding and
    text head are lecun-normal.
    """
    for module in tower.modules():
        if isinstance(module, nn.MultiheadAttention):
            for part in module.in_proj_weight.chunk(3):
                nn.init.xavier_uniform_(part)
            nn.init.zeros_(module.in_proj_bias)
            nn.init.xavier_uniform_(module.out_proj.weight)
            nn.init.zeros_(module.out_proj.bias)
        elif isinstance(module, MAP_HEADS):
            xavier_uniform_probe_(module.probe)
        elif isinstance(module, IMAGE_EMBEDDINGS):
            lecun_normal_(module.patch_embedding.weight)
        elif isinstance(module, SiglipTextModel | Siglip2TextModel):
            lecun_normal_(module.head.weight)
