"""What is written for timm: a SigLIP ViT with its sizes as `model_args`, so that any of ours can be loaded by timm."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from opensiglip.checkpoints.formats.timm_vit import RENAMES
from opensiglip.errors import UserError
from opensiglip.json_file import write_json
from opensiglip.models.model import Model
from opensiglip.models.sizes import Architecture
from opensiglip.models.towers import Vision

BASE = "vit_base_patch16_siglip_224"  # the timm name whose sizes `model_args` overrule
ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
TOLERANCE = 1e-5  # of embeddings of length 1, float32


def write(folder: Path, model: Model) -> None:
    """Write config.json and model.safetensors, and compare what timm makes of them. Raises UserError."""
    try:
        import timm
    except ImportError:
        raise UserError('--format timm needs timm: pip install "opensiglip[timm]".') from None
    networks = model.architecture
    check(model, "timm")
    pool = "map" if model.vision.tower.use_head else ""
    size = {"img_size": networks.resolution, "patch_size": networks.patch}
    shape = {
        "embed_dim": networks.vision.width,
        "depth": networks.vision.depth,
        "num_heads": networks.vision.heads,
        "mlp_ratio": ratio(networks),
        "act_layer": ACTIVATIONS[networks.vision.activation],
    }
    pretrained: dict[str, Any] = {
        "input_size": [3, networks.resolution, networks.resolution],
        "fixed_input_size": True,
        "interpolation": networks.interpolation,
        "crop_pct": 1.0,
        "crop_mode": "squash",
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "num_classes": 0,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    config = {"architecture": BASE, "num_classes": 0, "num_features": networks.vision.width, "global_pool": pool}
    arguments = size | shape | {"class_token": False, "global_pool": pool}
    write_json(folder / "config.json", config | {"model_args": arguments, "pretrained_cfg": pretrained})
    save_file(to_timm(model.state_dict()), folder / "model.safetensors", metadata={"format": "pt"})
    encoder = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = pixels(model)
    with torch.no_grad():
        ours = model.vision(images)
        theirs = encoder(images)
    ours = ours.tokens if ours.pooled is None else ours.pooled
    tell("timm", float((F.normalize(ours, dim=-1) - F.normalize(theirs, dim=-1)).abs().max()))


def check(model: Model, format: str) -> None:
    """Raises UserError where the image tower is no SigLIP ViT of one square."""
    networks = model.architecture
    if type(model.vision) is not Vision or networks.naflex or networks.coca is not None:
        raise UserError(
            f"--format {format} takes SigLIP's image tower on square images, which this model lacks; give hf."
        )


def ratio(networks: Architecture) -> float:
    """The width of the image tower's MLP as timm takes it, which rounds its product with the width down."""
    return (networks.vision.mlp + 0.25) / networks.vision.width


def pixels(model: Model, count: int = 4) -> Tensor:
    """Random images [B, 3, S, S] in [-1, 1], the same each time."""
    side = model.architecture.resolution
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def tell(library: str, worst: float, excuse: str = "") -> None:
    """Say how far the library's embeddings are from ours. Raises UserError where that is further than it may be."""
    print(f"{library} differs by at most {worst:.1e}{excuse}")
    if not worst <= TOLERANCE and not excuse:
        raise UserError(f"{library} computes other values than the model ({worst:.1e}); update it.")


def to_timm(state: dict[str, Tensor], prefix: str = "vision.tower.") -> dict[str, Tensor]:
    """The image tower of `Model.state_dict()` as timm names it: the inverse of `timm_vit.to_ours`."""
    theirs: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if not key.startswith(prefix):
            continue
        name, value = key.removeprefix(prefix), tensor.detach().contiguous()
        for their, mine in RENAMES:
            name = name.replace(mine, their)
        name = name.replace("post_layernorm.", "norm.")
        part, _, kind = name.rpartition("_proj.")
        if part.endswith((".self_attn.q", ".self_attn.k", ".self_attn.v")):
            if part.endswith("q"):
                stem = key.removesuffix(f"q_proj.{kind}")
                joined = torch.cat([state[f"{stem}{letter}_proj.{kind}"] for letter in "qkv"])
                theirs[f"{part.removesuffix('.self_attn.q')}.attn.qkv.{kind}"] = joined
        elif name == "embeddings.position_embedding.weight":
            theirs["pos_embed"] = value[None]
        elif name.startswith("head.attention.in_proj_"):
            query, key_value = value.split([len(value) // 3, 2 * len(value) // 3])
            kind = name.removeprefix("head.attention.in_proj_")
            theirs |= {f"attn_pool.q.{kind}": query.clone(), f"attn_pool.kv.{kind}": key_value.clone()}
        else:
            theirs[name] = value
    return theirs
