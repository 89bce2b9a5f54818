"""open_clip folders: SigLIP and SigLIP 2 (a timm ViT and open_clip's bidirectional text tower), and CoCa.

(model_configs/)
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opensiglip.checkpoints.contents import Contents, frame_of, shape
from opensiglip.checkpoints.fit import assemble
from opensiglip.checkpoints.formats import open_clip_coca as coca
from opensiglip.checkpoints.formats import timm_vit
from opensiglip.checkpoints.source import read_config, read_tensors
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.models.sizes import Architecture

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
RENAMES = (
    ("token_embedding.", "embeddings.token_embedding."),
    ("transformer.resblocks.", "encoder.layers."),
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".attn.out_proj.", ".self_attn.out_proj."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
    ("ln_final.", "final_layer_norm."),
    ("text_projection.", "head."),
)
# What makes a text tower SigLIP's; each is otherwise in CLIP.
SIGLIP = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}


def read(folder: Path, name: str) -> Contents:
    """What lies in a folder with open_clip_config.json. Raises UserError."""
    config = read_config(folder / CONFIG)
    config = config.get("model_cfg", config)
    networks = None if "multimodal_cfg" in config else architecture(config, name)
    state = read_tensors(folder, WEIGHTS, name)
    if networks is None:
        return coca.read(config, state, folder, name)
    networks = replace(networks, logit_bias="logit_bias" in state)
    try:
        ours = {"logit_bias": torch.zeros(1)} | to_ours(state)
        vocabulary = len(ours["text.tower.embeddings.token_embedding.weight"])
    except KeyError as error:
        raise UserError(f"{name} has no {error.args[0]}, which its config names; fetch it again.") from error
    model = assemble(name, ours, networks, vocabulary)
    clean = "canonical" if (config["text_cfg"].get("tokenizer_kwargs") or {}).get("clean") == "canonicalize" else None
    pipeline = TextPipeline.released(folder, length=networks.length, vocabulary=vocabulary, name=name, clean=clean)
    return Contents(name, model, frame_of(networks), "open_clip", pipeline)


def to_ours(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of a CustomTextCLIP as `Model.state_dict()` names it."""
    trunk = "visual.trunk."
    ours = timm_vit.to_ours({k.removeprefix(trunk): v for k, v in state.items() if k.startswith(trunk)})
    for key, tensor in state.items():
        name = key.removeprefix("text.")
        if key.startswith("visual."):
            continue
        for theirs, mine in RENAMES:
            name = name.replace(theirs, mine)
        if ".attn.in_proj_" in name:
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                ours["text.tower." + name.replace(".attn.in_proj_", f".self_attn.{part}_proj.")] = piece
        elif name == "positional_embedding":
            ours["text.tower.embeddings.position_embedding.weight"] = tensor
        elif name in ("logit_scale", "logit_bias"):
            ours[name] = tensor.reshape(1)
        else:
            ours[f"text.tower.{name}"] = tensor
    return ours


def architecture(config: dict[str, Any], name: str) -> Architecture:
    """The networks of a model config. Raises UserError where they are not SigLIP's."""
    vision, text = config.get("vision_cfg") or {}, config.get("text_cfg") or {}
    if "timm_model_name" not in vision or any(text.get(key) != value for key, value in SIGLIP.items()):
        raise UserError(f"{name} is an open_clip model of another kind than SigLIP or CoCa; its towers can't be read.")
    tower = timm_vit.skeleton(str(vision["timm_model_name"]), int(vision.get("image_size", 224)), name)
    width = int(text["width"])
    eps = float((text.get("norm_kwargs") or {}).get("eps", 1e-5))
    if abs(eps - 1e-6) > 1e-9:
        raise UserError(f"{name} has text layer norms of epsilon {eps}; SigLIP's towers have 1e-6.")
    tanh = (text.get("act_kwargs") or {}).get("approximate") == "tanh"
    language = shape(
        width,
        int(text["layers"]),
        int(width * float(text.get("mlp_ratio", 4.0))),
        int(text["heads"]),
        "gelu_pytorch_tanh" if tanh else "gelu",
        name,
    )
    return Architecture(tower.resolution, tower.patch, int(text["context_length"]), tower.vision, language)
