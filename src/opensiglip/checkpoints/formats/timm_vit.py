"""timm's SigLIP ViTs, which are SiglipVisionModel under other names; all other timm encoders stay timm's."""

from typing import Any

import torch
from torch import Tensor, nn

from opensiglip.checkpoints.contents import Contents, frame_of, shape
from opensiglip.checkpoints.fit import assemble
from opensiglip.errors import UserError, first_line
from opensiglip.models import timm_tower
from opensiglip.models.model import Model
from opensiglip.models.sizes import Architecture, Shape

RENAMES = (
    ("patch_embed.proj.", "embeddings.patch_embedding."),
    ("blocks.", "encoder.layers."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".attn.proj.", ".self_attn.out_proj."),
    ("attn_pool.latent", "head.probe"),
    ("attn_pool.proj.", "head.attention.out_proj."),
    ("attn_pool.norm.", "head.layernorm."),
    ("attn_pool.mlp.", "head.mlp."),
)


def read(place: str, name: str) -> Contents:
    """A timm folder or hub id, vision only: our tower where the network is the same, else timm's own, by `encoder`.

    Raises UserError.
    """
    tower = timm_tower.load(place, name)
    encoder = tower.timm_model
    networks = architecture(encoder, name)
    if networks is not None:
        model = assemble(name, to_ours(encoder.state_dict()), networks, 0)
        return Contents(name, model, frame_of(networks), "timm, a SigLIP ViT")
    given = (tower.config.model_args or {}).get("img_size")
    side = given or (encoder.pretrained_cfg.get("input_size") or (3, 224, 224))[-1]
    cut = getattr(encoder, "patch_embed", getattr(encoder, "embeds", None))  # a NaFlexViT's
    patch = getattr(cut, "patch_size", (16, 16))[0]
    width = Shape(int(encoder.num_features), 0, 0, 1)
    plain = Architecture(int(side if isinstance(side, int) else side[0]), int(patch), 64, width, encoder=place)
    return Contents(name, Model(tower, plain, 0).eval(), frame_of(plain), f"timm, {type(encoder).__name__}")


def to_ours(state: dict[str, Tensor], prefix: str = "vision.tower.") -> dict[str, Tensor]:
    """The state of a SigLIP ViT as `Model.state_dict()` names it."""
    ours: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = key
        for theirs, mine in RENAMES:
            name = name.replace(theirs, mine)
        if ".attn.qkv." in name:
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                ours[prefix + name.replace(".attn.qkv.", f".self_attn.{part}_proj.")] = piece
        elif name == "pos_embed":
            ours[prefix + "embeddings.position_embedding.weight"] = tensor[0]
        elif name.startswith("norm."):
            ours[prefix + "post_layernorm." + name.removeprefix("norm.")] = tensor
        elif not name.startswith("attn_pool."):
            ours[prefix + name] = tensor
    for kind in ("weight", "bias") if "attn_pool.q.weight" in state else ():
        query, both = state[f"attn_pool.q.{kind}"], state[f"attn_pool.kv.{kind}"]
        ours[f"{prefix}head.attention.in_proj_{kind}"] = torch.cat([query, both])
    return ours


def architecture(encoder: Any, name: str) -> Architecture | None:
    """The tower that computes what this encoder computes, or None where ours does not."""
    from timm.layers import AttentionPoolLatent
    from timm.models.vision_transformer import Attention, Block, VisionTransformer

    if type(encoder) is not VisionTransformer or encoder.num_prefix_tokens or encoder.pos_embed is None:
        return None
    first, pool = encoder.blocks[0], encoder.attn_pool
    plain = [encoder.norm_pre, encoder.fc_norm, encoder.head, encoder.patch_embed.norm]
    if type(first) is Block and type(first.attn) is Attention:
        plain += [first.ls1, first.ls2, first.attn.q_norm, first.attn.k_norm, first.attn.norm]
    else:
        return None
    pooled = pool is None or (type(pool) is AttentionPoolLatent and pool.latent_len == 1 and pool.pool == "token")
    norms = [m for m in encoder.modules() if isinstance(m, nn.LayerNorm)]
    if not (
        pooled
        and all(isinstance(module, nn.Identity) for module in plain)
        and all(abs(norm.eps - 1e-6) < 1e-9 for norm in norms)
        and isinstance(encoder.norm, nn.LayerNorm)
        and first.attn.qkv.bias is not None
    ):
        return None
    (height, width), patch = encoder.patch_embed.grid_size, encoder.patch_embed.patch_size[0]
    if height != width:
        return None
    act, up = first.mlp.act, first.mlp.fc1
    assert isinstance(up, nn.Linear)
    approximate = "tanh" if type(act).__name__ == "GELUTanh" else getattr(act, "approximate", None)
    activation = {"none": "gelu", "tanh": "gelu_pytorch_tanh"}.get(str(approximate))
    if activation is None:
        return None
    tower = shape(
        encoder.embed_dim,
        len(encoder.blocks),
        up.out_features,
        first.attn.num_heads,
        activation,
        name,
    )
    return Architecture(resolution=height * patch, patch=patch, length=64, vision=tower, pooling=pool is not None)


def skeleton(variant: str, side: int, name: str) -> Architecture:
    """The tower of a timm variant without weights, as open_clip's configs name it. Raises UserError."""
    try:
        import timm

        with torch.device("meta"):
            encoder = timm.create_model(variant, num_classes=0, global_pool="map", img_size=side)
    except ImportError as error:
        raise UserError("open_clip's image towers are timm's: pip install \"opensiglip[timm]\".") from error
    except Exception as error:  # timm's errors of many types
        raise UserError(f"{name}: timm can't make its image tower {variant!r} ({first_line(error)}).") from error
    networks = architecture(encoder, name)
    if networks is None:
        raise UserError(f"{name} has the image tower {variant!r}, which is not SigLIP's ViT.")
    return networks
