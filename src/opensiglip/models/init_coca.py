"""open_clip's CoCa weights as a `Model`: the released ones and those of the paper's poolings.

Read as plain tensors: open_clip itself is not needed.    (open_clip coca_model.py, transformer.py)
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from opensiglip.errors import UserError
from opensiglip.models.coca import CoCaShape
from opensiglip.models.model import Model
from opensiglip.models.sizes import Architecture, Shape

# open_clip's name -> ours, applied in turn.
RENAMES = (
    (r"^visual\.class_embedding$", "vision.image.tower.embeddings.class_embedding"),
    (r"^visual\.conv1\.", "vision.image.tower.embeddings.patch_embedding."),
    (r"^visual\.positional_embedding$", "vision.image.tower.embeddings.position_embedding.weight"),
    (r"^visual\.ln_pre\.", "vision.image.tower.pre_layrnorm."),
    (r"^visual\.transformer\.resblocks\.(\d+)\.ln_([12])\.", r"vision.image.tower.encoder.layers.\1.layer_norm\2."),
    (r"^visual\.transformer\.resblocks\.(\d+)\.mlp\.c_fc\.", r"vision.image.tower.encoder.layers.\1.mlp.fc1."),
    (r"^visual\.transformer\.resblocks\.(\d+)\.mlp\.c_proj\.", r"vision.image.tower.encoder.layers.\1.mlp.fc2."),
    (r"^visual\.transformer\.resblocks\.(\d+)\.attn\.", r"vision.image.tower.encoder.layers.\1.self_attn."),
    (r"^visual\.attn_pool\.", "vision.captioning."),
    (r"^visual\.attn_pool_contrastive\.", "vision.contrastive."),
    (r"^visual\.proj$", "vision.head.weight"),
    (r"^text\.positional_embedding$", "text.position"),
    (r"^text\.transformer\.resblocks\.", "text.layers."),
    (r"^text\.ln_final\.", "text.norm."),
    (r"^text\.text_projection$", "text.head.weight"),
    (r"^text_decoder\.ln_final\.", "decoder.norm."),
    (r"^text_decoder\.text_projection$", "decoder.vocabulary.weight"),
    (r"\.ln_1_kv\.", ".memory_norm."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.ln_q\.", ".query_norm."),
    (r"\.ln_k\.", ".memory_norm."),
    (r"\.mlp\.c_fc\.", ".up."),
    (r"\.mlp\.c_proj\.", ".down."),
    (r"\.attn\.out_proj\.", ".attention.out."),
    (r"\.attn\.", ".attention."),
)
TURNED = ("vision.head.weight", "text.head.weight", "decoder.vocabulary.weight")  # theirs are [in, out]


def from_open_clip(
    state: Mapping[str, Tensor],
    *,
    heads: tuple[int, int, int],
    pooler_heads: int = 8,
    pooling: str | None = None,
    start_id: int = 49406,
) -> Model:
    """A `Model` with the weights of an open_clip CoCa.

    heads: of image tower, unimodal and multimodal half, which weights don't tell: width / 64, and what `text_cfg` and
    `multimodal_cfg` say. pooling: "cascade" or "parallel", where there are two poolers. Our texts bring no start token,
    so its row of the embedding moves behind the vocabulary. Raises UserError on what is no CoCa of open_clip's towers.
    """
    try:
        architecture, vocabulary = _architecture(state, heads, pooler_heads, pooling)
        vision = architecture.vision
        host = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=vision.width,
                intermediate_size=vision.mlp,
                num_hidden_layers=vision.depth,
                num_attention_heads=vision.heads,
                image_size=architecture.resolution,
                patch_size=architecture.patch,
                hidden_act="gelu",
            )
        )
        model = Model(host, architecture, vocabulary)
        ours = _rename(state, model, start_id)
        missing, unknown = model.load_state_dict(ours, strict=False)
        left = [name for name in missing if name != "logit_bias" and ".tower.post_layernorm." not in name]
    except (KeyError, IndexError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"these are not the weights of an open_clip CoCa ({reason}).") from error
    if left or unknown:
        raise UserError(f"these are not the weights of an open_clip CoCa (no place for {[*left, *unknown][:3]}).")
    return model


def _architecture(
    state: Mapping[str, Tensor], heads: tuple[int, int, int], pooler_heads: int, pooling: str | None
) -> tuple[Architecture, int]:
    def shape(prefix: str, count: int) -> Shape:
        layers = {re.match(rf"{re.escape(prefix)}\.resblocks\.(\d+)\.", name) for name in state}
        depth = 1 + max(int(found[1]) for found in layers if found)
        mlp, width = state[f"{prefix}.resblocks.0.mlp.c_fc.weight"].shape
        return Shape(width, depth, mlp, count)

    two = "visual.attn_pool_contrastive.query" in state
    vocabulary, patch = len(state["text.token_embedding.weight"]), state["visual.conv1.weight"].shape[-1]
    side = int((len(state["visual.positional_embedding"]) - 1) ** 0.5)
    architecture = Architecture(
        resolution=side * patch,
        patch=patch,
        length=len(state["text.positional_embedding"]) - 2,  # without start token and [CLS]
        vision=shape("visual.transformer", heads[0]),
        text=shape("text.transformer", heads[1]),
        decoder=shape("text_decoder", heads[2]),
        coca=CoCaShape(
            queries=len(state["visual.attn_pool.query"]),
            heads=pooler_heads,
            embed=state["visual.proj"].shape[1],
            pooling=(pooling or "cascade") if two else "first",
            clip=True,
            legacy_mask=True,
        ),
        logit_bias=False,
    )
    return architecture, vocabulary


def _rename(state: Mapping[str, Tensor], model: Model, start_id: int) -> dict[str, Tensor]:
    ours: dict[str, Tensor] = {}
    for theirs, value in state.items():
        name, x = theirs, value.detach().float()
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        if found := re.match(r"text_decoder\.(resblocks|cross_attn)\.(\d+)\.(.*)", name):
            # Theirs are two lists, ours is one in which they take turns.
            name = f"decoder.layers.{2 * int(found[2]) + (found[1] == 'cross_attn')}.{found[3]}"
        if name.startswith("visual.ln_post."):
            last = "norm" if model.vision.pooling == "first" else "image.tower.post_layernorm"
            name = name.replace("visual.ln_post", f"vision.{last}")
        if name in ("text.token_embedding.weight", "text.cls_emb"):
            continue
        name, x = (name, x.T if name in TURNED else x)
        if name == "logit_scale":
            x = x.reshape(1)
        ours |= _attention(name, x)
    words = state["text.token_embedding.weight"].detach().float()
    ours["text.embedding.weight"] = torch.cat([words, words[start_id][None], state["text.cls_emb"].float()[None]])
    ours["decoder.vocabulary.bias"] = torch.zeros(len(words))
    return _joined(ours)


def _attention(name: str, x: Tensor) -> dict[str, Tensor]:
    """Their projections come packed as query, key and value, or one by one; ours join key and value."""
    prefix, _, last = name.rpartition(".")
    if last.startswith("in_proj_"):
        kind = last.removeprefix("in_proj_")
        query, key, value = x.chunk(3)
        if ".self_attn" in prefix:
            return {f"{prefix}.{n}_proj.{kind}": y for n, y in zip("qkv", (query, key, value), strict=True)}
        return {f"{prefix}.query.{kind}": query, f"{prefix}.key_value.{kind}": torch.cat([key, value])}
    if found := re.fullmatch(r"([qkv])_proj_weight", last):
        return {f"{prefix}.query.weight" if found[1] == "q" else f"{prefix}.{found[1]}.weight": x}
    return {name: x}


def _joined(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keys and values that came one by one."""
    for name in [name for name in ours if name.endswith("attention.k.weight")]:
        prefix = name.removesuffix("k.weight")
        ours[f"{prefix}key_value.weight"] = torch.cat([ours.pop(name), ours.pop(f"{prefix}v.weight")])
    return ours
