"""transformers folders: SiglipModel, Siglip2Model (NaFlex), and either's vision tower alone; v1 and v2."""

import math
import warnings
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from opensiglip.checkpoints.checkpoint import Checkpoint, read_json, shape
from opensiglip.errors import UserError
from opensiglip.models.sizes import Architecture, Shape

NAFLEX = ("siglip2", "siglip2_vision_model")  # the fixed-resolution SigLIP 2 is a SiglipModel
TYPES = ("siglip", "siglip_vision_model", *NAFLEX)


def read(folder: Path, name: str) -> Checkpoint:
    """The checkpoint in a folder whose config.json has one of `TYPES`. Raises UserError."""
    try:
        model = AutoModel.from_pretrained(folder, use_safetensors=True, dtype="float32")
    except (OSError, RuntimeError, SafetensorError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"{name} can't be read ({reason}); fetch it again, with its safetensors.") from error
    mean = read_json(folder / "preprocessor_config.json").get("image_mean") or [0.5]
    if any(abs(float(value) - 0.5) > 1e-6 for value in mean):
        raise UserError(f"{name} has images of mean {mean}; SigLIP's are of mean 0.5, in [-1, 1].")
    state = to_ours(model)
    if "logit_scale" in state and not state["logit_scale"].any() and not state["logit_bias"].any():
        warnings.warn(
            f"{name} has logit_scale and logit_bias 0, where transformers starts them; SigLIP's are log 10 and -10.",
            stacklevel=2,
        )
    networks = architecture(model.config, name)
    vocabulary = int(model.config.text_config.vocab_size) if networks.text else 0
    return Checkpoint(name, f"transformers {type(model).__name__}", state, networks, vocabulary, folder)


def to_ours(model: PreTrainedModel) -> dict[str, Tensor]:
    """The model's weights as `Model.state_dict()` names them."""
    state: dict[str, Tensor] = {}
    for key, tensor in model.state_dict().items():
        part, _, rest = key.partition(".")
        ours = {"vision_model": f"vision.tower.{rest}", "text_model": f"text.tower.{rest}"}.get(part)
        state[ours or (key if part.startswith("logit_") else f"vision.tower.{key}")] = tensor
    return state


def architecture(config: Any, name: str) -> Architecture:
    """The networks that a config describes. Raises UserError."""
    vision, text = getattr(config, "vision_config", config), getattr(config, "text_config", None)
    patch, naflex = int(vision.patch_size), config.model_type in NAFLEX
    side = patch * math.isqrt(vision.num_patches) if naflex else int(vision.image_size)
    return Architecture(
        resolution=side,
        patch=patch,
        length=64 if text is None else int(text.max_position_embeddings),
        vision=_shape(vision, name),
        text=None if text is None else _shape(text, name),
        pooling=text is None and bool(vision.vision_use_head),
        naflex=naflex,
    )


def _shape(part: Any, name: str) -> Shape:
    if abs(part.layer_norm_eps - 1e-6) > 1e-9:
        raise UserError(f"{name} has layer norms of epsilon {part.layer_norm_eps}; SigLIP's towers have 1e-6.")
    return shape(
        int(part.hidden_size),
        int(part.num_hidden_layers),
        int(part.intermediate_size),
        int(part.num_attention_heads),
        part.hidden_act,
        name,
    )
