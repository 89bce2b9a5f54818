"""open_clip's CoCa: the released ones and those of the paper's poolings.    (coca_model.py, transformer.py)"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opensiglip.checkpoints.contents import Contents, frame_of
from opensiglip.checkpoints.fit import assemble
from opensiglip.checkpoints.source import rename
from opensiglip.data.text import TextPipeline
from opensiglip.data.tokenizer_files import has_files as has_tokenizer
from opensiglip.errors import UserError, first_line
from opensiglip.models.sizes import Architecture, CoCaShape, Shape

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
LAST = "image.tower.post_layernorm"
TURNED = ("vision.head.weight", "text.head.weight", "decoder.vocabulary.weight")  # theirs are [in, out]


def read(config: Mapping[str, Any], state: Mapping[str, Tensor], folder: Path, name: str) -> Contents:
    """What a model config and its weights make.

    Raises UserError where they are not a CoCa of open_clip's own towers.
    """
    try:
        networks = architecture(config, state)
        ours = to_ours(state, networks)
        rows = len(state["text.token_embedding.weight"])
    except (AttributeError, KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:
        reason = first_line(error)
        raise UserError(f"{name} does not hold the weights of an open_clip CoCa ({reason}); fetch it again.") from error
    model = assemble(name, ours, networks, rows)
    # CLIP's tokenizer calls its end token its padding; open_clip pads with 0, and CoCa's [CLS] looks at no 0.
    text = {"length": networks.length, "lower": True, "pad_id": 0, "eos_id": rows - 1, "vocabulary": rows}
    pipeline = TextPipeline.from_pretrained(folder, text) if has_tokenizer(folder) else None
    return Contents(name, model, frame_of(networks), "open_clip CoCa", pipeline, tasks=("cap",))


def architecture(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Architecture:
    """The networks of a model config, their sizes as the weights have them. Raises what `read` catches."""
    vision, text, decoder = (config[f"{part}_cfg"] for part in ("vision", "text", "multimodal"))
    if config.get("quick_gelu") or "timm_model_name" in vision or "hf_model_name" in text:
        raise ValueError("its towers are not open_clip's own, or have another activation than gelu")

    def shape(prefix: str, heads: int) -> Shape:
        layers = {re.match(rf"{re.escape(prefix)}\.resblocks\.(\d+)\.", name) for name in state}
        depth = 1 + max(int(found[1]) for found in layers if found)
        mlp, width = state[f"{prefix}.resblocks.0.mlp.c_fc.weight"].shape
        return Shape(width, depth, mlp, heads, "gelu")

    patch = state["visual.conv1.weight"].shape[-1]
    side = int((len(state["visual.positional_embedding"]) - 1) ** 0.5)
    return Architecture(
        resolution=side * patch,
        patch=patch,
        length=len(state["text.positional_embedding"]) - 2,  # without start token and [CLS]
        vision=shape("visual.transformer", int(vision["width"]) // int(vision.get("head_width", 64))),
        text=shape("text.transformer", int(text["heads"])),
        decoder=shape("text_decoder", int(decoder["heads"])),
        coca=CoCaShape(
            queries=len(state["visual.attn_pool.query"]),
            heads=int(vision.get("attn_pooler_heads", 8)),
            embed=state["visual.proj"].shape[1],
            pooling="first" if vision["attentional_pool"] is True else str(vision["attentional_pool"]),
            clip=True,
            legacy_mask=True,
        ),
        logit_bias=False,
    )


def to_ours(state: Mapping[str, Tensor], networks: Architecture) -> dict[str, Tensor]:
    """Weights of open_clip's CoCa as `Model.state_dict()` names them.

    Our texts bring no start token, so its row of the embedding moves behind the vocabulary.
    """
    assert networks.coca is not None
    first = networks.coca.pooling == "first"
    ours: dict[str, Tensor] = {}
    for theirs, value in state.items():
        name, x = rename(theirs, RENAMES), value.detach().float()
        if found := re.match(r"text_decoder\.(resblocks|cross_attn)\.(\d+)\.(.*)", name):
            # Theirs are two lists, ours is one in which they take turns.
            name = f"decoder.layers.{2 * int(found[2]) + (found[1] == 'cross_attn')}.{found[3]}"
        if name.startswith("visual.ln_post."):
            name = name.replace("visual.ln_post", "vision.norm" if first else "vision." + LAST)
        if name in ("text.token_embedding.weight", "text.cls_emb"):
            continue
        name, x = (name, x.T if name in TURNED else x)
        ours |= _attention(name, x.reshape(1) if name.startswith("logit_") else x)
    words = state["text.token_embedding.weight"].detach().float()
    start = words[len(words) - 2]  # the last two entries of CLIP's tokenizer are start and end of text
    ours["text.embedding.weight"] = torch.cat([words, start[None], state["text.cls_emb"].float()[None]])
    ours["decoder.vocabulary.bias"] = torch.zeros(len(words))
    ours.setdefault("logit_bias", torch.zeros(1))
    if first:  # transformers' tower has a norm where theirs has none; it is passed over
        width = networks.vision.width
        ours |= {f"vision.{LAST}.weight": torch.ones(width), f"vision.{LAST}.bias": torch.zeros(width)}
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
