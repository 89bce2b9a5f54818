"""LoRA: the towers learn by a product of two thin matrices beside each frozen one.    (arXiv:2106.09685; peft)"""

from copy import deepcopy
from typing import Any

import torch
from torch import nn

from opensiglip.errors import UserError
from opensiglip.models.model import Model

# Where towers hold their layers: SigLIP, DINOv2 and BERT; ViT and DeiT; DINOv3. Not the pooling head: its attention is
# one fused module, which peft treats otherwise.
LAYERS = ("encoder", "layers", "model")


def add(tower: nn.Module, rank: int) -> None:
    """Freeze a tower and lay thin matrices beside all of its layers' matrices, at first without effect.

    Raises UserError on a tower whose layers it does not find, such as timm's.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError('--lora needs peft: pip install "opensiglip[lora]".') from error
    encoder: Any = next((getattr(tower, name) for name in LAYERS if hasattr(tower, name)), None)
    if encoder is None:
        raise UserError(f"--lora does not know the layers of a {type(tower).__name__}; leave it out.")
    tower.requires_grad_(False)
    linear = {name.rpartition(".")[2] for name, module in encoder.named_modules() if isinstance(module, nn.Linear)}
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=sorted(linear)), encoder)
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_("lora_" in name)


def merged(model: Model) -> Model:
    """The model as `merge` would leave it, which it stays where there is nothing to merge."""
    if not any(hasattr(module, "lora_A") for module in model.modules()):
        return model
    plain = deepcopy(model)
    merge(plain)
    return plain


@torch.no_grad()
def merge(model: Model) -> None:
    """Add what low-rank matrices learned to those beside them, so that nothing of peft is left in the model."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if hasattr(child, "lora_A"):
                layer: Any = child
                layer.merge()
                setattr(module, name, layer.get_base_layer())
        if hasattr(module, "peft_config"):
            del module.peft_config
