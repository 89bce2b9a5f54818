"""big_vision's .npz files: SigLIP's two towers and CapPa's encoder and decoder.    (two_towers.py, cappa.py)"""

import math
import zipfile
from collections import defaultdict
from collections.abc import Mapping
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import read_array_header_1_0, read_array_header_2_0, read_magic
from torch import Tensor

from opensiglip.checkpoints.contents import Contents, frame_of
from opensiglip.checkpoints.fit import assemble
from opensiglip.checkpoints.source import rename
from opensiglip.errors import UserError, first_line
from opensiglip.models.limits import MOST_LAYERS
from opensiglip.models.sizes import Architecture, Shape

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
MOST_UNPACKED, SLACK = 4, 1 << 24  # weights hardly compress; bytes that a small file of zeros may unpack to
MOST_AXES = 8  # of an array
FUSED = ("query", "key", "value")


def read(path: Path, name: str) -> Contents:
    """What lies in a .npz file, which has no tokenizer. Raises UserError if it can't be read or holds neither model."""
    try:
        check_members(path)
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            root = "params/" if any(key.startswith("params/") for key in file.files) else ""
            arrays = {key.removeprefix(root): file[key] for key in file.files if key.startswith(root)}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{name} is not a readable .npz file ({first_line(error)}); fetch it again.") from error
    try:
        state, networks, vocabulary = to_ours(arrays), architecture(arrays), _vocabulary(arrays)
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(
            f"{name} holds neither SigLIP's towers nor CapPa's (no {first_line(error)}); their trees begin with "
            "params/img, params/txt or params/encoder."
        ) from error
    model = assemble(name, state, networks, vocabulary)
    return Contents(name, model, frame_of(networks), "big_vision", tasks=("cap",) if networks.decoder else ())


def check_members(path: Path) -> None:
    """Raises ValueError on a .npz that unpacks to far more than it is, or whose arrays are not what it holds.

    All is read from headers: nothing is unpacked.
    """
    with zipfile.ZipFile(path) as archive:
        members, size = archive.infolist(), path.stat().st_size
        if sum(member.file_size for member in members) > MOST_UNPACKED * size + SLACK:
            raise ValueError(f"it unpacks to more than {MOST_UNPACKED} times its {size:,} bytes")
        for member in members:
            with archive.open(member) as stream:
                read = {(1, 0): read_array_header_1_0, (2, 0): read_array_header_2_0}[read_magic(stream)]
                shape, _, dtype = read(stream)
                held = member.file_size - stream.tell()
            if dtype.hasobject:
                raise ValueError(f"{member.filename} holds Python objects, which would be unpickled")
            if len(shape) > MOST_AXES or min(shape, default=1) < 1 or math.prod(shape) * dtype.itemsize != held:
                raise ValueError(f"{member.filename} has {held:,} bytes for an array of {shape}")


def to_ours(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Parameters of flax, or gradients by them, as `Model.state_dict()` names and lays them out."""
    found: dict[str, list[tuple[int, Tensor]]] = defaultdict(list)
    for path, array in _unstacked(arrays).items():
        name = rename(path, RENAMES)
        role = next((order for order, role in enumerate(FUSED) if f"/{role}/" in path), 0)
        found[name.replace("/", ".")].append((role, _turned(path, _tensor(array))))
    return {
        name: torch.cat([part for _, part in sorted(parts, key=itemgetter(0))]) if len(parts) > 1 else parts[0][1]
        for name, parts in found.items()
    }


def architecture(arrays: Mapping[str, np.ndarray]) -> Architecture:
    """The networks that arrays of these shapes belong to. Raises KeyError where there is no image tower."""
    arrays = _unstacked(arrays)
    image = "img" if "img/embedding/kernel" in arrays else "encoder"
    kernel = arrays[f"{image}/embedding/kernel"]
    patch = kernel.shape[0] if kernel.ndim == 4 else round((kernel.shape[0] / 3) ** 0.5)
    positions = arrays[f"{image}/pos_embedding"]
    side = round((positions.size // positions.shape[-1]) ** 0.5)
    text = _shape(arrays, "txt/Encoder_0/encoderblock_") if "txt/Embed_0/embedding" in arrays else None
    decoder = _shape(arrays, "decoder/EncDecBlock") if "pos_embedding_decoder" in arrays else None
    length = arrays["txt/pos_embedding"].shape[1] if text else 64
    return Architecture(
        resolution=patch * side,
        patch=patch,
        length=arrays["pos_embedding_decoder"].shape[-2] if decoder else length,
        vision=_shape(arrays, f"{image}/Transformer/encoderblock_"),
        text=text,
        decoder=decoder,
        decoder_bias="decoder/EncDecBlock0/MLP/Dense_0/bias" in arrays,
    )


def _shape(arrays: Mapping[str, np.ndarray], block: str) -> Shape:
    attention, mlp = ("SelfAttn", "MLP") if "EncDec" in block else ("MultiHeadDotProductAttention_0", "MlpBlock_0")
    width, heads = arrays[f"{block}0/{attention}/query/kernel"].shape[:2]
    depth = len({key.removeprefix(block).split("/")[0] for key in arrays if key.startswith(block)})
    return Shape(width, depth, arrays[f"{block}0/{mlp}/Dense_0/kernel"].shape[-1], heads)


def _vocabulary(arrays: Mapping[str, np.ndarray]) -> int:
    if "decoder/LogitsDense/bias" in arrays:
        return len(arrays["decoder/LogitsDense/bias"])
    return len(arrays["txt/Embed_0/embedding"]) if "txt/Embed_0/embedding" in arrays else 0


def _unstacked(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Blocks that were scanned over lie in one array [depth, ...] of "encoderblock"; here each in its own."""
    single: dict[str, np.ndarray] = {}
    for path, array in arrays.items():
        if "/encoderblock/" in path:
            if len(array) > MOST_LAYERS:
                raise ValueError(f"{path} has {len(array)} layers")
            single |= {path.replace("/encoderblock/", f"/encoderblock_{n}/"): part for n, part in enumerate(array)}
        else:
            single[path] = array
    return single


def _tensor(array: np.ndarray) -> Tensor:
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:  # bfloat16, which numpy stores without a name
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).float()
    return torch.from_numpy(np.array(array))


def _turned(path: str, x: Tensor) -> Tensor:
    """flax: Dense [in, out]; attention [in, heads, d], back [heads, d, out]; convolution [H, W, in, out]."""
    if path.endswith("/embedding/kernel"):
        if x.dim() == 2:  # NaFlex: patches as rows of y, x, colour
            side = round((x.shape[0] / 3) ** 0.5)
            x = x.unflatten(0, (side, side, 3))
        return x.permute(3, 2, 0, 1)
    if path.endswith("/kernel"):
        return x.reshape(-1, x.shape[-1]).T if "/out/" in path else x.flatten(1).T
    if path.endswith("/bias"):
        return x.flatten()
    if path.endswith("pos_embedding") or path.endswith("pos_embedding_decoder"):
        return x.reshape(-1, x.shape[-1])
    return x.reshape(1) if path in ("t", "b") else x
