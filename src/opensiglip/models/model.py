"""Model: everything serving needs. Two towers, a decoder, temperature and bias; a plain transformers folder on disk."""

import json
import math
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoModel,
    PreTrainedModel,
    Siglip2Model,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
    TimmWrapperModel,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from opensiglip.errors import UserError
from opensiglip.models import timm_tower
from opensiglip.models.attention import NAME
from opensiglip.models.decoder import Decoder
from opensiglip.models.short_start import short_start
from opensiglip.models.sizes import Architecture, Shape
from opensiglip.models.timm_tower import TimmVision
from opensiglip.models.towers import Text, Vision, initialise

SIDECAR = "opensiglip.json"  # what a transformers config has no place for: architecture, text pipeline, box format


class Model(nn.Module):
    """Vision tower, and as the recipe asks for them text tower with temperature and bias, and decoder."""

    logit_scale: Tensor
    logit_bias: Tensor

    def __init__(self, host: PreTrainedModel, architecture: Architecture, vocabulary: int) -> None:
        """`host` is the transformers model that owns the towers: SiglipModel, or SiglipVisionModel without text."""
        super().__init__()
        self.host, self.architecture, self.vocabulary = [host], architecture, vocabulary  # listed: not a submodule
        self.vision = _vision(host)
        self.text: Text | None = None
        self.decoder: Decoder | None = None
        if architecture.text is not None:
            assert isinstance(host, SiglipModel | Siglip2Model)
            self.text = Text(host.text_model)
            self.logit_scale, self.logit_bias = host.logit_scale, host.logit_bias
        self.vision.requires_grad_(not architecture.frozen)
        if architecture.decoder is not None:
            self.decoder = Decoder(
                architecture.decoder,
                vocabulary,
                architecture.length,
                self.vision.width,
                bias=architecture.decoder_bias,
            )

    @classmethod
    def new(cls, architecture: Architecture, vocabulary: int) -> "Model":
        """Freshly initialised, with SigLIP's temperature e^t' = 10 and bias -10 (SigLIP, Sec. 3.2)."""
        if architecture.encoder is not None:
            return cls(timm_tower.load(architecture.encoder), architecture, vocabulary)
        host = _host(architecture, vocabulary)
        initialise(host)
        model = cls(host, architecture, vocabulary)
        if architecture.short_start:
            short_start(model)
        if model.text is not None:
            nn.init.constant_(model.logit_scale, math.log(10.0))
            nn.init.constant_(model.logit_bias, -10.0)
        return model

    def checkpoint_activations(self) -> None:
        """In training, keep only what enters each layer of towers and decoder, and form the rest again in backward.

        A third more arithmetic for a fraction of the memory; gradients stay the same. A timm encoder keeps all.
        """
        again: Any = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
        for layer in self.modules():
            if isinstance(layer, GradientCheckpointingLayer):  # what transformers' own switch sets, by version
                layer.gradient_checkpointing, layer._gradient_checkpointing_func = True, again
        if self.decoder is not None:
            self.decoder.checkpointing = True

    def save_pretrained(self, folder: str | Path, about: dict[str, Any] | None = None) -> None:
        """Write the transformers folder; the decoder beside it; `about` (text pipeline, box format) in the sidecar."""
        folder = Path(folder)
        self.host[0].save_pretrained(folder)
        if self.decoder is not None:
            weights = {k: v.detach().cpu().contiguous() for k, v in self.decoder.state_dict().items()}
            save_file(weights, folder / "decoder.safetensors", metadata={"format": "pt"})
        facts = {"architecture": self.architecture.to_json(), "vocabulary": self.vocabulary} | (about or {})
        (folder / SIDECAR).write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Model":
        """Read what `save_pretrained` wrote. Raises UserError naming the file that is missing or does not fit."""
        folder = Path(folder)
        facts = read_sidecar(folder)
        try:
            architecture, vocabulary = Architecture.from_json(facts["architecture"]), int(facts["vocabulary"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{folder / SIDECAR} does not describe a model ({error}); export the run again.") from error
        try:
            host = AutoModel.from_pretrained(folder, use_safetensors=True)
        except (OSError, RuntimeError, SafetensorError, ValueError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise UserError(f"the weights in {folder} can't be read ({reason}); export the run again.") from error
        model = cls(host, architecture, vocabulary)
        if model.text is not None and not model.logit_scale.any() and not model.logit_bias.any():
            warnings.warn(
                f"{folder} has logit_scale and logit_bias 0: "
                "transformers starts both at 0; SigLIP's are log 10 and -10.",
                stacklevel=2,
            )
        if model.decoder is not None:
            path = folder / "decoder.safetensors"
            if not path.is_file():
                raise UserError(f"{path} is missing; a model with a decoder has it beside model.safetensors.")
            try:
                model.decoder.load_state_dict(load_file(path))
            except (RuntimeError, SafetensorError) as error:
                raise UserError(f"{path} can't be read or does not fit {SIDECAR}; export the run again.") from error
        return model


def read_sidecar(folder: Path) -> dict[str, Any]:
    """The contents of opensiglip.json. Raises UserError if the folder is not one of ours."""
    path = folder / SIDECAR
    if not path.is_file():
        raise UserError(f"{folder} holds no {SIDECAR}; give the model/ folder of a run.")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not readable JSON ({error}); export the run again.") from error
    if not isinstance(facts, dict):
        raise UserError(f"{path} is not a JSON object; export the run again.")
    return facts


def _vision(host: PreTrainedModel) -> Vision | TimmVision:
    if isinstance(host, TimmWrapperModel):
        return TimmVision(host)
    host.set_attn_implementation(NAME)
    tower = host.vision_model if isinstance(host, SiglipModel | Siglip2Model) else host
    assert isinstance(tower, SiglipVisionModel | Siglip2VisionModel)
    return Vision(tower)


def _host(architecture: Architecture, vocabulary: int) -> PreTrainedModel:
    def tower(shape: Shape) -> dict[str, Any]:
        return {
            "hidden_size": shape.width,
            "num_hidden_layers": shape.depth,
            "intermediate_size": shape.mlp,
            "num_attention_heads": shape.heads,
        }

    vision = tower(architecture.vision) | {"image_size": architecture.resolution, "patch_size": architecture.patch}
    if architecture.text is None:
        # No text to compare with, so no pooling: a MAP head would never get a gradient.
        return SiglipVisionModel(SiglipVisionConfig(**vision, vision_use_head=False))
    text = tower(architecture.text) | {
        "vocab_size": vocabulary,
        "max_position_embeddings": architecture.length,
        "projection_size": architecture.vision.width,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
    }
    return SiglipModel(
        SiglipConfig(
            vision_config=SiglipVisionConfig(**vision).to_dict(), text_config=SiglipTextConfig(**text).to_dict()
        )
    )
