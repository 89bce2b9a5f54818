"""big_vision's parameters under our names: for the goldens, and for nothing else."""

import re
from collections import defaultdict
from collections.abc import Mapping
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

GOLDENS = Path(__file__).parent / "goldens"

# flax's path -> ours, applied in turn. Arrays that meet in one name are stacked, in the order of `FUSED`.
RENAMES = (
    (r"^(encoder|img)/(Transformer/)?", "vision.tower/"),
    (r"^txt/(Encoder_0/)?", "text.tower/"),
    (r"^vision.tower/embedding/", "vision.tower/embeddings/patch_embedding/"),
    (r"Embed_0/embedding$", "embeddings/token_embedding/weight"),
    (r"tower/pos_embedding$", "tower/embeddings/position_embedding/weight"),
    (r"^vision.tower/encoder_norm", "vision.tower/post_layernorm"),
    (r"^text.tower/encoder_norm", "text.tower/final_layer_norm"),
    (r"encoderblock_(\d+)/LayerNorm_0", r"encoder/layers/\1/layer_norm1"),
    (r"encoderblock_(\d+)/LayerNorm_1", r"encoder/layers/\1/layer_norm2"),
    (
        r"encoderblock_(\d+)/MultiHeadDotProductAttention_0/([qkv])(uery|ey|alue)",
        r"encoder/layers/\1/self_attn/\2_proj",
    ),
    (r"encoderblock_(\d+)/MultiHeadDotProductAttention_0/out", r"encoder/layers/\1/self_attn/out_proj"),
    (r"encoderblock_(\d+)/MlpBlock_0", r"encoder/layers/\1/mlp"),
    (r"MAPHead_0/LayerNorm_0", "head/layernorm"),
    (r"MAPHead_0/MultiHeadDotProductAttention_0/(query|key|value)/kernel", "head/attention/in_proj_weight"),
    (r"MAPHead_0/MultiHeadDotProductAttention_0/(query|key|value)/bias", "head/attention/in_proj_bias"),
    (r"MAPHead_0/MultiHeadDotProductAttention_0/out", "head/attention/out_proj"),
    (r"MAPHead_0/MlpBlock_0", "head/mlp"),
    (r"MAPHead_0", "head"),
    (r"mlp/Dense_0", "mlp/fc1"),
    (r"mlp/Dense_1", "mlp/fc2"),
    (r"^t$", "logit_scale"),
    (r"^b$", "logit_bias"),
    (r"^pos_embedding_decoder$", "decoder/position"),
    (r"^decoder/EmbedTargets/embedding$", "decoder/embedding/weight"),
    (r"^decoder/LogitsDense", "decoder/vocabulary"),
    (r"^decoder/LayerNorm", "decoder/norm"),
    (r"^decoder/EncDecBlock(\d+)/LayerNorm", r"decoder/blocks/\1/norm"),
    (r"^decoder/EncDecBlock(\d+)/", r"decoder/blocks/\1/"),
    (r"MLP/Dense_0", "up"),
    (r"MLP/Dense_1", "down"),
    (r"SelfAttn", "self_attention"),
    (r"CrossAttn", "cross_attention"),
    (r"attention/(key|value)/", "attention/key_value/"),
    (r"/(kernel|scale)$", "/weight"),
)
FUSED = ("query", "key", "value")


def load(name: str) -> dict[str, np.ndarray]:
    """A golden's arrays."""
    with np.load(GOLDENS / f"{name}_big_vision.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def under(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Those below a path, named from there."""
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


def to_ours(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Parameters of flax, or gradients by them, as `Model.state_dict()` names and lays them out."""
    found: dict[str, list[tuple[int, Tensor]]] = defaultdict(list)
    for path, array in arrays.items():
        name = path
        for pattern, ours in RENAMES:
            name = re.sub(pattern, ours, name)
        role = next((order for order, role in enumerate(FUSED) if f"/{role}/" in path), 0)
        found[name.replace("/", ".")].append((role, _turned(path, torch.from_numpy(np.array(array)))))
    return {
        name: torch.cat([part for _, part in sorted(parts, key=itemgetter(0))]) if len(parts) > 1 else parts[0][1]
        for name, parts in found.items()
    }


def _turned(path: str, x: Tensor) -> Tensor:
    """flax: Dense [in, out]; attention [in, heads, d], back [heads, d, out]; convolution [H, W, in, out]."""
    if path.endswith("/kernel"):
        if x.dim() == 4:
            return x.permute(3, 2, 0, 1)
        return x.reshape(-1, x.shape[-1]).T if "/out/" in path else x.flatten(1).T
    if path.endswith("/bias"):
        return x.flatten()
    return x[0] if "pos_embedding" in path else x
