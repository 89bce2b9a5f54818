"""transformers folders: SiglipModel, Siglip2Model (NaFlex), and either's vision tower alone; v1 and v2."""

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoConfig

from opensiglip.checkpoints.contents import Contents, frame_of, most_patches, shape
from opensiglip.checkpoints.fit import assemble
from opensiglip.checkpoints.source import image_processor, read_json, read_tensors
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError, first_line
from opensiglip.models.sizes import Architecture, Shape

NAFLEX = ("siglip2", "siglip2_vision_model")  # the fixed-resolution SigLIP 2 is a SiglipModel
TYPES = ("siglip", "siglip_vision_model", *NAFLEX)
WEIGHTS = "model.safetensors"


def read(folder: Path, name: str) -> Contents:
    """What lies in a folder whose config.json has one of `TYPES`. Raises UserError."""
    made_by = read_json(folder / "config.json").get("architectures") or ["SiglipModel"]
    if str(made_by[0]).endswith("ForImageClassification"):
        raise UserError(
            f"{name} is a {made_by[0]}: a classifier's image tower, without a text tower; give the SiglipModel that it "
            "was fine-tuned from, or save its image tower alone as a SiglipVisionModel."
        )
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{name} has a config.json that can't be read ({first_line(error)}); fetch it again."
        ) from error
    mean = image_processor(folder).get("image_mean") or [0.5]
    if any(abs(float(value) - 0.5) > 1e-6 for value in mean):
        raise UserError(f"{name} has images of mean {mean}; SigLIP's are of mean 0.5, in [-1, 1].")
    networks = architecture(config, name)
    vocabulary = int(config.text_config.vocab_size) if networks.text else 0
    model = assemble(name, to_ours(read_tensors(folder, WEIGHTS, name)), networks, vocabulary)
    if model.text is not None and not model.logit_scale.any() and not model.logit_bias.any():
        warnings.warn(
            f"{name} has logit_scale and logit_bias 0, where transformers starts them; SigLIP's are log 10 and -10.",
            stacklevel=2,
        )
    pipeline = None
    if networks.text is not None:
        pipeline = TextPipeline.released(folder, length=networks.length, vocabulary=vocabulary, name=name)
    frame = frame_of(networks, most_patches(folder) if networks.naflex else None)
    return Contents(name, model, frame, f"transformers {made_by[0]}", pipeline)


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A SiglipModel's or Siglip2Model's weights, or their image tower's, as `Model.state_dict()` names them."""
    ours: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key.endswith(".position_ids"):  # a buffer of older versions
            continue
        part, _, rest = key.partition(".")
        tower = {"vision_model": f"vision.tower.{rest}", "text_model": f"text.tower.{rest}"}.get(part)
        ours[tower or (key if part.startswith("logit_") else f"vision.tower.{key}")] = tensor
    return ours


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
        pooling=text is None and bool(getattr(vision, "vision_use_head", True)),  # not in older configs of transformers
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
