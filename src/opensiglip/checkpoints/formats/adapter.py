"""A LoRA adapter's folder as peft saves it: its low-rank matrices added to the model that it was trained on."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from opensiglip.checkpoints.source import read_config, read_json, read_tensors
from opensiglip.errors import UserError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
SIMPLE = re.compile(r"[\w.\\^$-]*([*+][\w.\\^$-]*){0,3}")  # others may take hours to search for


def base_of(folder: Path, name: str) -> str:
    """The model that the adapter was trained on, as its config names it. Raises UserError."""
    base = read_json(folder / CONFIG).get("base_model_name_or_path")
    if not base:
        raise UserError(
            f"{name} is an adapter that names no model in its {CONFIG}; write the folder or hub id of the one "
            "that it was trained on there, as base_model_name_or_path."
        )
    beside = folder / str(base)
    return str(beside if beside.exists() else base)


@torch.no_grad()
def merge(folder: Path, name: str, host: nn.Module) -> int:
    """Add an adapter to the transformers model that it was trained on; return how many matrices it changed.

    W + scale B A, with scale = alpha / r, or alpha / sqrt(r) of rank-stabilised ones (arXiv:2106.09685, Sec. 4.1;
    arXiv:2312.03732). Modules that were trained whole take their place. Raises UserError on another kind of adapter,
    and naming a tensor that the model has no place for.
    """
    config, tensors = read_config(folder / CONFIG), read_tensors(folder, WEIGHTS, name)
    if config.get("peft_type") != "LORA" or config.get("use_dora"):
        kind = "DoRA" if config.get("use_dora") else config.get("peft_type")
        raise UserError(f"{name} is an adapter of kind {kind}; only LoRA adapters can be read: merge it with peft.")
    own = host.state_dict()
    known = {key.removeprefix("vision_model."): key for key in own} | {key: key for key in own}
    changed = 0
    for key, tensor in tensors.items():
        place = key.removeprefix(PREFIX)
        if place.endswith(".lora_B.weight"):
            continue
        layer = place.removesuffix(".lora_A.weight")
        target = known.get(f"{layer}.weight" if layer != place else re.sub(r"\.modules_to_save\.\w+", "", place))
        if target is None:
            raise UserError(f"{name} has {key}, which the model that it names has no place for; give its own base.")
        weight = own[target]
        if layer == place:
            _check(name, key, tensor, weight)
            weight.copy_(tensor)
        else:
            low = tensor.float()
            high = tensors.get(key.replace("lora_A", "lora_B"))
            if high is None:
                raise UserError(f"{name} has {key} without its lora_B; save the adapter again.")
            product = high.float() @ low * _scale(config, layer, len(low))
            _check(name, key, product.T if config.get("fan_in_fan_out") else product, weight)
            weight.add_(product.T if config.get("fan_in_fan_out") else product)
        changed += 1
    return changed


def _scale(config: dict[str, Any], layer: str, rank: int) -> float:
    """What a layer's product counts, by its own alpha where the config has one for it."""
    patterns = config.get("alpha_pattern") or {}
    if slow := [pattern for pattern in patterns if not SIMPLE.fullmatch(pattern)]:
        raise UserError(
            f"{CONFIG} has the alpha_pattern {slow[0][:40]!r}; of patterns, names with up to 3 * can be read."
        )
    found = (value for pattern, value in patterns.items() if re.search(rf"(^|\.){pattern}$", layer))
    alpha = float(next(found, config.get("lora_alpha", 8)))
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _check(name: str, key: str, value: Tensor, weight: Tensor) -> None:
    if value.shape != weight.shape:
        raise UserError(
            f"{name}: {key} makes {list(value.shape)} where the model that it names has {list(weight.shape)}; "
            "give its own base."
        )
