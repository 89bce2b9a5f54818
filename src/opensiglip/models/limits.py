"""What networks may be read: of bounded sizes, no larger than the weights beside their config, of finite weights.

A config is somebody else's. Nothing is built before both are checked, so that a few bytes of JSON can't take the
machine's memory, or hours.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from opensiglip.bounds import Bounds
from opensiglip.errors import UserError, first_line

MISSING = 2  # times the weights that are stored; what is built before a tensor is missed takes no more
MOST_LAYERS = 256  # the largest released towers have 56
LAYERS, WIDTH, MLP = (
    Bounds(at_least=0, at_most=MOST_LAYERS),
    Bounds(at_least=1, at_most=2**16),
    Bounds(0, at_most=2**18),
)
HEADS, PATCH, SIDE = (
    Bounds(at_least=1, at_most=2**10),
    Bounds(at_least=1, at_most=2**9),
    Bounds(at_least=1, at_most=2**14),
)
LENGTH, WORDS, PATCHES = Bounds(at_least=1, at_most=2**17), Bounds(at_least=0, at_most=2**22), Bounds(1, at_most=2**16)
RATIO, CLASSES = Bounds(more_than=0, at_most=64), Bounds(at_least=0, at_most=100_000)
# Names of transformers' configs, open_clip's, timm's and ours. A size that is a list has several.
SIZES = {
    **dict.fromkeys(("num_hidden_layers", "layers", "depth", "depths", "num_layers"), LAYERS),
    **dict.fromkeys(("hidden_size", "width", "embed_dim", "embed_dims", "embed", "num_features"), WIDTH),
    **dict.fromkeys(("projection_size", "projection_dim"), WIDTH),
    **dict.fromkeys(("intermediate_size", "mlp"), MLP),
    **dict.fromkeys(("num_attention_heads", "heads", "num_heads", "head_width", "attn_pooler_heads"), HEADS),
    **dict.fromkeys(("patch_size", "patch"), PATCH),
    **dict.fromkeys(("image_size", "img_size", "resolution"), SIDE),
    **dict.fromkeys(("max_position_embeddings", "context_length", "length", "queries", "attn_pooler_queries"), LENGTH),
    **dict.fromkeys(("vocab_size", "vocabulary"), WORDS),
    **dict.fromkeys(("num_patches", "max_num_patches"), PATCHES),
    **dict.fromkeys(("num_channels", "in_chans", "reg_tokens", "num_reg_tokens"), HEADS),
    **dict.fromkeys(("mlp_ratio", "mlp_ratios"), RATIO),
    **dict.fromkeys(("num_labels", "num_classes"), CLASSES),
}
ANY = Bounds(at_least=-(2**63), at_most=2**63)  # of a number of any other name
FRACTIONS = ("mlp_ratio", "mlp_ratios")


def check_sizes(config: Any, where: object) -> None:
    """Raises UserError on the first number of a config that no network of ours has; `where` says whose it is."""
    for key, value in _named(config):
        if value is None or isinstance(value, str):
            continue
        bounds = SIZES.get(key, ANY)
        whole = key not in SIZES or key in FRACTIONS or (isinstance(value, int) and not isinstance(value, bool))
        if not whole or not isinstance(value, int | float) or value not in bounds:
            kind = "whole number" if key in SIZES and key not in FRACTIONS else "number"
            raise UserError(f"{where} has {key} {str(value)[:40]}; give a {kind} of {bounds}, or fetch it again.")


def check_room(where: object, networks: nn.Module, stored: int) -> None:
    """Raises UserError where networks, built on `torch.device("meta")`, hold far more numbers than are stored for them.

    Where it is only some, the reader names the first tensor that is missing.
    """
    needed = sum(x.numel() for x in networks.state_dict().values())
    if needed > MISSING * stored:
        raise UserError(
            f"{where}: its config describes {needed:,} weights, and its files have {stored:,}; fetch it again, whole."
        )


def refuse_not_finite(
    where: object, weights: Mapping[str, Tensor], mend: str = "take an earlier checkpoint, or fetch it again"
) -> None:
    """Raises UserError on the first weight that is NaN or infinite: its answers would be noise, or nothing."""
    for key, weight in weights.items():
        if weight.is_floating_point() and not torch.isfinite(weight).all():
            raise UserError(f"{where} has weights that are not finite, in {key}; {mend}.")


def stored_in(folder: Path) -> int:
    """How many numbers the safetensors files of a folder hold, by their headers. Raises UserError."""
    count = 0
    for file in sorted(folder.glob("*.safetensors")):
        try:
            if not file.is_file():  # to open a pipe would wait for ever
                raise OSError("it is no file")
            with safe_open(file, framework="pt") as opened:
                count += sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise UserError(f"the weights in {file} can't be read ({first_line(error)}); fetch it again.") from error
    return count


def _named(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a config that are no containers, each with the nearest name above it."""
    if isinstance(value, dict):
        for name, one in value.items():
            yield from _named(one, str(name))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _named(one, key)
    else:
        yield key, value
