"""`Model`: towers, decoder, temperature and bias, as inference needs them; on disk a plain transformers folder."""

import json
import math
import warnings
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils import checkpoint as activations
from transformers import (
    AutoConfig,
    AutoModel,
    PreTrainedModel,
    Siglip2Model,
    SiglipModel,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from opensiglip.errors import UserError, first_line
from opensiglip.json_file import SIDECAR, load_json
from opensiglip.models import timm_tower
from opensiglip.models.coca import Multimodal, Unimodal
from opensiglip.models.decoder import Decoder
from opensiglip.models.limits import check_room, check_sizes, refuse_not_finite, stored_in
from opensiglip.models.own_towers import new_host, pair_host, text_of, vision_of
from opensiglip.models.pali import Pali
from opensiglip.models.pretrained_towers import PretrainedText
from opensiglip.models.quiet_library import no_bars
from opensiglip.models.short_start import short_start
from opensiglip.models.sizes import Architecture
from opensiglip.models.tower_host import PARTS, TowerHost
from opensiglip.models.towers import Text, initialise

HOSTS = ("siglip", "siglip_vision_model", "siglip2", "siglip2_vision_model", "clip_vision_model", "timm_wrapper")


class Model(nn.Module):
    """Image tower and, if the recipe has them, text tower with temperature and bias, and decoder."""

    logit_scale: Tensor
    logit_bias: Tensor

    def __init__(self, host: PreTrainedModel | TowerHost, architecture: Architecture, vocabulary: int) -> None:
        """`host` owns the towers: transformers' SiglipModel, its image tower alone, or towers of other libraries.

        Parameters that the host lacks are saved in a separate file beside it.
        """
        super().__init__()
        self.host, self.architecture, self.vocabulary = [host], architecture, vocabulary  # listed: not a submodule
        self.vision: Any = vision_of(host, architecture)
        self.text: Text | PretrainedText | Unimodal | None = None
        self.decoder: Decoder | Multimodal | None = None
        self.pali: Pali | None = None
        if isinstance(host, SiglipModel | Siglip2Model):
            self.text = Text(host.text_model)
            self.logit_scale, self.logit_bias = host.logit_scale, host.logit_bias
        elif architecture.text is not None:
            pair = architecture.foreign
            if pair is not None and isinstance(host, TowerHost) and host.text is not None:
                self.text = PretrainedText(host.text, pair, architecture.pad_id)
            else:
                width = self.vision.width if pair is None or pair.vision is None else pair.embed
                self.text = text_of(architecture, vocabulary, width)
            self.logit_scale, self.logit_bias = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        if self.text is not None:
            self.logit_bias.requires_grad_(architecture.logit_bias)
        if architecture.frozen:
            self.vision.requires_grad_(False)
        if architecture.t5 is not None:
            self.pali = Pali(architecture.t5, vocabulary, architecture.length, self.vision.width, architecture.pad_id)
        if isinstance(self.text, Unimodal) and architecture.decoder is not None:
            self.decoder = Multimodal(self.text, architecture.decoder, self.vision.width)
        elif architecture.decoder is not None:
            self.decoder = Decoder(
                architecture.decoder,
                vocabulary,
                architecture.length,
                self.vision.width,
                bias=architecture.decoder_bias,
                dropout=architecture.decoder_dropout,
                image_positions=architecture.image_positions * (architecture.resolution // architecture.patch) ** 2,
            )

    @classmethod
    def new(cls, architecture: Architecture, vocabulary: int) -> "Model":
        """Initialise a new model; by default with SigLIP's temperature e^t' = 10 and bias -10 (SigLIP, Sec. 3.2)."""
        if architecture.encoder is not None:
            model = cls(timm_tower.load(architecture.encoder), architecture, vocabulary)
            if model.text is not None:
                initialise(model.text)
        elif architecture.foreign is not None:
            model = cls(pair_host(architecture, architecture.foreign), architecture, vocabulary)
        else:
            host = new_host(architecture, vocabulary)
            initialise(host)
            model = cls(host, architecture, vocabulary)
            if architecture.short_start:
                short_start(model)
        if model.text is not None:
            nn.init.constant_(model.logit_scale, math.log(architecture.logit_scale))
            nn.init.constant_(model.logit_bias, -10.0 if architecture.logit_bias else 0.0)
        return model

    def beside(self) -> dict[str, Tensor]:
        """The weights that belong neither to the host nor to the decoder, by name."""
        theirs = {id(x) for x in self.host[0].state_dict(keep_vars=True).values()}
        mine = self.state_dict(keep_vars=True)
        return {name: x for name, x in mine.items() if id(x) not in theirs and not name.startswith("decoder.")}

    def checkpoint_activations(self) -> None:
        """Recompute activations inside the layers of towers and decoder in the backward pass.

        It costs a third more compute and saves most of their memory; gradients stay the same. A timm encoder and
        CoCa's text decoder keep all activations.
        """
        again: Any = partial(activations.checkpoint, use_reentrant=False, preserve_rng_state=False)
        for layer in self.modules():
            if isinstance(layer, GradientCheckpointingLayer):  # set by transformers' own switch
                layer.gradient_checkpointing, layer._gradient_checkpointing_func = True, again
        if isinstance(self.decoder, Decoder):
            self.decoder.checkpointing = True

    def save_pretrained(self, folder: str | Path, about: dict[str, Any] | None = None) -> None:
        """Write the transformers folder, the decoder, and `about` (text pipeline, box format) in opensiglip.json."""
        folder = Path(folder)
        with no_bars():
            self.host[0].save_pretrained(folder)
        if self.decoder is not None:
            weights = {k: v.detach().cpu().contiguous() for k, v in self.decoder.state_dict().items()}
            save_file(weights, folder / "decoder.safetensors", metadata={"format": "pt"})
        if beside := {k: v.detach().cpu().contiguous().clone() for k, v in self.beside().items()}:
            save_file(beside, folder / "beside.safetensors", metadata={"format": "pt"})
        facts = {"architecture": self.architecture.to_json(), "vocabulary": self.vocabulary} | (about or {})
        (folder / SIDECAR).write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Model":
        """Read a folder of `save_pretrained`; `Pretrained.open` also reads unfinished runs and other formats.

        Raises UserError, naming the file or tensor, if one is missing, does not fit or is not finite.
        """
        folder = Path(folder)
        facts = read_sidecar(folder)
        try:
            architecture, vocabulary = Architecture.from_json(facts["architecture"]), int(facts["vocabulary"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{folder / SIDECAR} does not describe a model ({first_line(error)}); export the run again."
            ) from error
        if architecture.foreign is not None:
            vision, text = (getattr(architecture.foreign, part) and str(folder / part) for part in PARTS)
            here = replace(architecture.foreign, vision=vision, text=text)
            towers = pair_host(architecture, here, folder)
            return cls._with_rest(towers, replace(architecture, pair=here), vocabulary, folder)
        check_host(folder)
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            with torch.device("meta"):
                skeleton = cls(AutoModel.from_config(config), architecture, vocabulary)
            if skeleton.beside():
                _check_there(folder / "beside.safetensors", skeleton.beside())
            if skeleton.decoder is not None:
                _check_there(folder / "decoder.safetensors", skeleton.decoder.state_dict())
            check_room(folder, skeleton, stored_in(folder))
            with no_bars():
                host, report = AutoModel.from_pretrained(
                    folder, use_safetensors=True, trust_remote_code=False, output_loading_info=True
                )
        except (OSError, RuntimeError, SafetensorError, ValueError) as error:
            reason = first_line(error)
            raise UserError(f"the weights in {folder} can't be read ({reason}); export the run again.") from error
        if missing := sorted(report["missing_keys"]):
            raise UserError(f"the weights in {folder} have no {missing[0]}; export the run again.")
        return cls._with_rest(host, architecture, vocabulary, folder)

    @classmethod
    def _with_rest(
        cls, host: PreTrainedModel | TowerHost, architecture: Architecture, vocabulary: int, folder: Path
    ) -> "Model":
        """The model around a given host, with the other files of the folder."""
        model = cls(host, architecture, vocabulary)
        if names := model.beside().keys():
            _load(model, folder / "beside.safetensors", names, strict=False)
        if model.decoder is not None:
            _load(model.decoder, folder / "decoder.safetensors", model.decoder.state_dict().keys())
        refuse_not_finite(folder, model.state_dict())
        if model.text is not None and not model.logit_scale.any() and not model.logit_bias.any():
            warnings.warn(
                f"{folder} has logit_scale and logit_bias 0: "
                "transformers starts both at 0; SigLIP's are log 10 and -10.",
                stacklevel=2,
            )
        return model


def _check_there(path: Path, names: Collection[str]) -> None:
    """Raises UserError if a file of the tensors `names` is missing."""
    if not path.is_file():
        raise UserError(f"{path} is missing; it has {next(iter(names))} and other parts named by {SIDECAR}.")


def _load(module: nn.Module, path: Path, names: Collection[str], *, strict: bool = True) -> None:
    """Load exactly the tensors `names` of a file. Raises UserError."""
    try:
        state = load_file(path)
        if state.keys() != set(names):
            raise ValueError("other names")
        module.load_state_dict(state, strict=strict)
    except (RuntimeError, SafetensorError, ValueError) as error:
        raise UserError(f"{path} can't be read or does not fit {SIDECAR}; export the run again.") from error


def check_host(folder: Path) -> None:
    """Raises UserError if config.json does not belong to a known host, or has an invalid size."""
    path = folder / "config.json"
    try:
        config = load_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable JSON ({first_line(error)}); export the run again.") from error
    if not isinstance(config, dict) or config.get("model_type", "timm_wrapper") not in HOSTS:
        raise UserError(f"{path} is of no model that a run writes ({', '.join(HOSTS)}); export the run again.")
    check_sizes(config, path)


def read_sidecar(folder: Path) -> dict[str, Any]:
    """The contents of opensiglip.json. Raises UserError if the folder has none."""
    path = folder / SIDECAR
    if not path.is_file():
        raise UserError(f"{folder} holds no {SIDECAR}; give the model/ folder of a run.")
    try:
        facts = load_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable JSON ({error}); export the run again.") from error
    if not isinstance(facts, dict):
        raise UserError(f"{path} is not a JSON object; export the run again.")
    if (folder / "image_encoder.onnx").is_file():
        raise UserError(f"{folder} is an export for onnxruntime, which OpenSigLIP does not read; give the run.")
    check_sizes(facts, path)
    return facts
