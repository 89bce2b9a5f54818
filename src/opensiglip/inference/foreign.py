"""Other people's models as subjects: transformers, open_clip, timm; a prefix of the spec says which reads it."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    CLIPModel,
    PreTrainedTokenizerBase,
    Siglip2Model,
    Siglip2VisionModel,
    SiglipModel,
    SiglipVisionModel,
)

from opensiglip.checkpoints.checkpoint import most_patches
from opensiglip.data.fields.frame import Frame, Geometry
from opensiglip.data.fields.naflex import NaFlex
from opensiglip.errors import UserError
from opensiglip.inference.subject import Subject, autocast_on, best_device, each_alone
from opensiglip.models import timm_tower
from opensiglip.models.timm_tower import TimmVision
from opensiglip.models.towers import Text, Vision
from opensiglip.types import Features


def from_transformers(name: str) -> Subject:
    """A folder or hub id of a SiglipModel, Siglip2Model, their vision towers, or CLIPModel. Raises UserError."""
    try:
        host = AutoModel.from_pretrained(name, use_safetensors=True).to(best_device()).eval()
    except Exception as error:  # the library raises a dozen types for one cause
        raise UserError(
            f"{name} is no model that can be read ({first_line(error)}); give a run, an export, a transformers folder "
            f"or hub id, or {', '.join(f'{prefix}:NAME' for prefix in LOADERS)}."
        ) from error
    if isinstance(host, CLIPModel):
        return _clip(host, name)
    if isinstance(host, SiglipModel | Siglip2Model):
        return _siglip(host, name)
    if isinstance(host, SiglipVisionModel | Siglip2VisionModel):
        return Subject(name, _frame(host, name), host.device, autocast_on(host.device), Vision(host))
    raise UserError(
        f"{name} is a {type(host).__name__}; of transformers' models Siglip, Siglip2 and CLIP can be judged."
    )


def from_open_clip(rest: str) -> Subject:
    """`NAME[:PRETRAINED or file]` as open_clip.create_model takes them. Raises UserError."""
    try:
        import open_clip
        from open_clip.transformer import VisionTransformer
    except ImportError:
        raise UserError("open_clip: models need open_clip; `pip install open-clip-torch`.") from None
    whole = rest.startswith(("hf-hub:", "local-dir:"))  # names with a colon of their own
    name, _, weights = (rest, "", "") if whole else rest.partition(":")
    if not weights and not whole:
        raise UserError(f"open_clip:{rest} names no weights; write open_clip:NAME:PRETRAINED, or a file of weights.")
    device = best_device()
    try:
        model = open_clip.create_model(name, pretrained=weights or None, device=device).eval()
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:
        raise UserError(f"open_clip:{rest} can't be loaded ({first_line(error)}).") from error
    visual = model.visual
    mean, std = (torch.tensor(value, device=device).view(1, 3, 1, 1) for value in (visual.image_mean, visual.image_std))

    def see(pixels: Tensor) -> Features:
        said = model.forward_intermediates(
            image=((pixels + 1) / 2 - mean) / std,
            image_indices=1,
            normalize=False,
            normalize_intermediates=True,
            image_output_fmt="NLC",
        )
        return Features(said["image_features"], said["image_intermediates"][-1])

    size = visual.image_size
    bias = model.logit_bias
    return Subject(
        f"open_clip:{rest}",
        Frame(size if isinstance(size, int) else size[0]),
        device,
        autocast_on(device),
        see,
        lambda texts: model.encode_text(tokenizer(list(texts)).to(device)),
        (lambda tokens: tokens @ visual.proj) if isinstance(visual, VisionTransformer) else None,
        scale=float(model.logit_scale.detach().exp()),
        bias=None if bias is None else float(bias.detach()),
    )


def from_timm(name: str) -> Subject:
    """A timm encoder, vision only: a saved folder, a hub id, or a name of the hub's timm/. Raises UserError."""
    tower = TimmVision(timm_tower.load(name)).to(best_device()).eval()
    inner = tower.tower.timm_model

    def see(pixels: Tensor) -> Features:
        features = inner.forward_features(((pixels + 1) / 2 - tower.mean) / tower.std)
        return Features(inner.forward_head(features, pre_logits=True), features[:, tower.prefix :])

    device, settings = tower.mean.device, tower.tower.config.model_args or {}
    side = settings.get("img_size") or inner.pretrained_cfg["input_size"][-1]
    return Subject(f"timm:{name}", Frame(side), device, autocast_on(device), see)


LOADERS: dict[str, Callable[[str], Subject]] = {"open_clip": from_open_clip, "timm": from_timm}


def _siglip(host: SiglipModel | Siglip2Model, name: str) -> Subject:
    vision, text = Vision(host.vision_model), Text(host.text_model)
    tokenizer, length = _tokenizer(name), _length(host)

    def read(texts: Sequence[str]) -> Tensor:
        # Lower-cased, to exactly this length, no mask: as these models were trained (recipes of SigLIP and SigLIP 2).
        ids = _ids(tokenizer, [text.lower() for text in texts], padding="max_length", max_length=length)["input_ids"]
        pooled = text(ids.to(host.device)).pooled
        assert pooled is not None
        return pooled

    return Subject(
        name,
        _frame(host, name),
        host.device,
        autocast_on(host.device),
        vision,
        read,
        partial(each_alone, vision),
        scale=float(host.logit_scale.detach().exp()),
        bias=float(host.logit_bias.detach()),
    )


def _clip(host: CLIPModel, name: str) -> Subject:
    processor, tokenizer = AutoImageProcessor.from_pretrained(name), _tokenizer(name)
    mean, std = (
        torch.tensor(value, device=host.device).view(1, 3, 1, 1)
        for value in (processor.image_mean, processor.image_std)
    )

    def see(pixels: Tensor) -> Features:
        said = host.vision_model(pixel_values=((pixels + 1) / 2 - mean) / std)
        tokens = host.vision_model.post_layernorm(said.last_hidden_state[:, 1:])
        return Features(host.visual_projection(said.pooler_output), tokens)

    def read(texts: Sequence[str]) -> Tensor:
        inputs = _ids(tokenizer, list(texts), padding=True, max_length=_length(host))
        return host.text_projection(host.text_model(**inputs.to(host.device)).pooler_output)

    return Subject(
        name,
        _frame(host, name),
        host.device,
        autocast_on(host.device),
        see,
        read,
        host.visual_projection,  # patches go the class token's way
        scale=float(host.logit_scale.detach().exp()),
    )


def _frame(host: Any, name: str) -> Geometry:
    config = getattr(host.config, "vision_config", host.config)
    if isinstance(host, Siglip2Model | Siglip2VisionModel):
        most = most_patches(name) or config.num_patches
        return NaFlex(config.patch_size, most, (most,))
    return Frame(config.image_size)


def _length(host: SiglipModel | Siglip2Model | CLIPModel) -> int:
    config: Any = host.config.text_config
    return int(config.max_position_embeddings)


def _tokenizer(name: str) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as error:
        raise UserError(f"the tokenizer of {name} can't be read ({first_line(error)}).") from error


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], **how: Any) -> Any:
    return tokenizer(texts, truncation=True, return_tensors="pt", **how)


def first_line(error: Exception) -> str:
    """What an exception says, cut to its first line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
