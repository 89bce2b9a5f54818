"""Pretrained towers of other makes under heads that bring images and texts into one space.    (LiT; SAIL)

LiT (arXiv:2111.07991) locks a self-supervised image tower; SAIL (arXiv:2412.04616) locks a sentence encoder too and
trains heads alone. A tower is any of transformers' whose image model gives tokens, or whose text model gives states.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from opensiglip.errors import UserError
from opensiglip.models.initialisation import xavier_uniform_probe_
from opensiglip.models.sizes import PairShape
from opensiglip.types import Features, TowerStates


class PretrainedVision(nn.Module):
    """A transformers ViT (DINOv2, DINOv3, ViT, SigLIP, ...) and, with `pair`, a head over its tokens.

    Its prefix (class token, DeiT's distillation token, registers) stands before the patch tokens. Images come in
    [-1, 1] as everywhere here, and are brought to the mean and deviation that the tower was trained with.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        tower: PreTrainedModel,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        pair: PairShape | None = None,
    ) -> None:
        super().__init__()
        self.tower = tower
        config: Any = tower.config
        self.width, self.patch = int(config.hidden_size), int(config.patch_size)
        names = {name.rpartition(".")[2] for name in tower.state_dict()}
        self.has_class = not names.isdisjoint(("cls_token", "class_embedding"))
        self.prefix = self.has_class + ("distillation_token" in names) + int(getattr(config, "num_register_tokens", 0))
        self.resizes = "interpolate_pos_encoding" in inspect.signature(tower.forward).parameters
        self.head = None if pair is None else ImageHead(pair, self.width, self.has_class)
        for name, parameter in tower.named_parameters():  # which no forward here reads
            if "mask_token" in name or name.startswith(("pooler.", "head.")):
                parameter.requires_grad_(False)
        for name, value in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(value).view(1, 3, 1, 1), persistent=False)

    def forward(
        self, image: Tensor | TowerStates, mask_indices: Tensor | None = None, token: Tensor | None = None
    ) -> Features:
        """pixels [B, 3, H, W] in [-1, 1], or what `read` made of them -> pooled [B, E], patch tokens [B, N, D].

        Patches at `mask_indices` [B, M] int64 are replaced by `token` [D] before positions are added, as in `Vision`.
        """
        if isinstance(image, TowerStates):
            read = image.values
        elif mask_indices is not None and token is not None:
            with masked(self.patch_embedding, mask_indices, token):
                read = self.read(image)
        else:
            read = self.read(image)
        pooled = None if self.head is None else self.head(read)
        return Features(pooled, read[:, self.summary :])

    def states(self, pixels: Tensor) -> Tensor:
        """pixels [B, 3, H, W] in [-1, 1] -> class token, registers, patch tokens [B, P + N, D] after the last norm."""
        x = ((pixels + 1) / 2 - self.mean) / self.std
        more = {"interpolate_pos_encoding": True} if self.resizes else {}
        states: Tensor = self.tower(pixel_values=x, **more).last_hidden_state
        return states

    def read(self, pixels: Tensor) -> Tensor:
        """Mean patch token, class token if there is one, patch tokens [B, S + N, D]: what heads and decoders read.

        A cache holds these of a frozen tower; where no patch token is read, the first S alone.
        """
        states = self.states(pixels)
        patches = states[:, self.prefix :]
        return torch.cat([patches.mean(1, keepdim=True), states[:, : int(self.has_class)], patches], 1)

    @property
    def summary(self) -> int:
        """S, how many states stand before the patch tokens."""
        return 1 + int(self.has_class)

    @property
    def patch_embedding(self) -> nn.Conv2d:
        """The convolution that makes a token of each patch. Raises UserError where it can't be told."""
        side = (self.patch, self.patch)
        found = [m for m in self.tower.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == m.stride == side]
        if len(found) != 1:
            raise UserError(
                f"--vision: a {type(self.tower).__name__} does not embed its patches by one convolution, so none can "
                "be masked; give a DINOv2, a DINOv3, a ViT or the like."
            )
        return found[0]


@contextmanager
def masked(patch_embedding: nn.Conv2d, mask_indices: Tensor, token: Tensor) -> Iterator[None]:
    """Meanwhile its output [B, D, h, w] has `token` [D] at the patches `mask_indices` [B, M] int64, rows first.

    What follows, the tower's own code, then treats them as any patch.    (DINOv2's bool_masked_pos)
    """

    def replace(module: nn.Module, inputs: tuple[Tensor, ...], patches: Tensor) -> Tensor:
        where = mask_indices[:, None].expand(-1, len(token), -1)
        values = token.to(patches.dtype)[None, :, None].expand_as(where)
        return patches.flatten(2).scatter(2, where, values).view_as(patches)

    hook = patch_embedding.register_forward_hook(replace)
    try:
        yield
    finally:
        hook.remove()


class ImageHead(nn.Module):
    """From an image tower's states, as `PretrainedVision.read` orders them, to the common space.

    linear: of the class token. mlp: of class token and mean patch token side by side, as SAIL. map: attention pooling
    with a learned query, as SigLIP's MAP head, over class token and patch tokens.
    """

    def __init__(self, pair: PairShape, width: int, has_class: bool) -> None:
        super().__init__()
        self.kind, self.has_class = pair.head, has_class
        parts = 1 + (pair.head == "mlp" and has_class)
        if pair.head == "map":
            self.probe = nn.Parameter(xavier_uniform_probe_(torch.empty(1, 1, width)))
            self.attention = nn.MultiheadAttention(width, max(1, width // 64), batch_first=True)
        self.out = nn.Linear(width, pair.embed) if pair.head == "linear" else mlp(parts * width, pair)

    @property
    def reads_patches(self) -> bool:
        """Does it read more than mean and class token?"""
        return self.kind == "map"

    def forward(self, read: Tensor) -> Tensor:
        """read [B, S + N, D], of which N may be 0 without `reads_patches` -> [B, E]."""
        if not torch.is_autocast_enabled(read.device.type):  # which chooses by itself
            read = read.to(next(self.parameters()).dtype)
        if self.kind == "map":
            pooled = attend(self.attention, self.probe, read[:, 1:])
        elif self.kind == "mlp":
            pooled = read[:, : 1 + int(self.has_class)].flip(1).flatten(1)
        else:
            pooled = read[:, int(self.has_class)]
        embedded: Tensor = self.out(pooled)
        return embedded


def attend(attention: nn.MultiheadAttention, query: Tensor, tokens: Tensor) -> Tensor:
    """attention(query, tokens, tokens) of one query [1, 1, D] for all of tokens [B, N, D]: [B, D].

    Keys and values are never formed: the query goes through the keys' matrix, and the values' matrix is applied to the
    weighted means of the tokens, which takes N times fewer products. The keys' bias moves all weights alike.
    """
    heads, width = attention.num_heads, attention.embed_dim
    to_query, to_key, to_value = attention.in_proj_weight.view(3, heads, width // heads, width)
    query_bias, _, value_bias = attention.in_proj_bias.view(3, heads, width // heads)
    asked = (to_query @ query.flatten() + query_bias)[:, None] @ to_key * (width // heads) ** -0.5  # [heads, 1, D]
    shares = (tokens @ asked.flatten(0, 1).mT).softmax(1)  # [B, N, heads]
    means = shares.mT @ tokens  # [B, heads, D]
    values = torch.einsum("bhd,hed->bhe", means, to_value) + value_bias
    found: Tensor = attention.out_proj(values.flatten(1))
    return found


class PretrainedText(nn.Module):
    """A BERT-like sentence encoder and a head. Padding is masked; pooling is what the encoder was trained with."""

    def __init__(self, tower: PreTrainedModel, pair: PairShape, pad_id: int) -> None:
        """pair.pooling: mean (of real tokens), cls (the first token) or pooler (the tower's own)."""
        super().__init__()
        self.tower, self.pooling, self.pad_id = tower, pair.pooling, pad_id
        self.width = int(tower.config.hidden_size)
        self.head = nn.Linear(self.width, pair.embed) if pair.head == "linear" else mlp(self.width, pair)
        pooler = getattr(tower, "pooler", None)
        if pooler is not None and self.pooling != "pooler":
            pooler.requires_grad_(False)

    def forward(self, ids: Tensor | TowerStates) -> Features:
        """ids [B, L], or what `read` made of them -> pooled [B, E], tokens [B, L, D] (of cached states [B, 1, D])."""
        if isinstance(ids, TowerStates):
            values = ids.values.to(next(self.head.parameters()).dtype)
            return Features(self.head(values[:, 0]), values)
        states = self.states(ids)
        return Features(self.head(self._pool(states, ids)), states.last_hidden_state)

    def states(self, ids: Tensor) -> Any:
        """The tower's output, padding masked."""
        return self.tower(input_ids=ids, attention_mask=(ids != self.pad_id).long())

    def read(self, ids: Tensor) -> Tensor:
        """What the head reads of texts: [B, 1, D], to be cached where the tower is frozen."""
        return self._pool(self.states(ids), ids)[:, None]

    def _pool(self, states: Any, ids: Tensor) -> Tensor:
        tokens: Tensor = states.last_hidden_state
        if self.pooling == "cls":
            return tokens[:, 0]
        if self.pooling == "pooler":
            pooled: Tensor = states.pooler_output
            return pooled
        real = (ids != self.pad_id)[..., None]
        return (tokens * real).sum(1) / real.sum(1)


def mlp(width: int, pair: PairShape) -> nn.Sequential:
    """Norm, hidden layer of four times the space's width, GELU, dropout, output [.., E]."""
    hidden = 4 * pair.embed
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, hidden),
        nn.GELU(),
        nn.Dropout(pair.dropout),
        nn.Linear(hidden, pair.embed),
    )


def is_frozen(tower: nn.Module | None) -> bool:
    """Is there a tower, of which nothing is trained?"""
    return tower is not None and not any(parameter.requires_grad for parameter in tower.parameters())
