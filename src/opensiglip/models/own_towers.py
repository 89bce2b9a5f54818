"""The towers that an `Architecture` describes: new ones as transformers has them, and those of other libraries."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedModel,
    Siglip2Config,
    Siglip2Model,
    Siglip2TextConfig,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipTextModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    TimmWrapperModel,
)

from opensiglip.models.attention import NAME
from opensiglip.models.coca import ClipVision, PooledVision, Unimodal
from opensiglip.models.pretrained_towers import PretrainedVision
from opensiglip.models.sizes import Architecture, PairShape, Shape
from opensiglip.models.timm_tower import TimmVision
from opensiglip.models.tower_host import TowerHost, load_tower
from opensiglip.models.towers import Text, Vision, initialise


def vision_of(
    host: PreTrainedModel | TowerHost, architecture: Architecture
) -> Vision | TimmVision | PooledVision | PretrainedVision:
    """The image tower of a host, called as every image tower is."""
    if isinstance(host, TowerHost):
        pair = architecture.foreign
        assert pair is not None
        if pair.vision is None:
            host.vision.set_attn_implementation(NAME)
            return Vision(host.vision)  # type: ignore[arg-type] # ours
        head = None if architecture.text is None else pair
        return PretrainedVision(host.vision, mean=pair.mean, std=pair.std, pair=head)
    if isinstance(host, TimmWrapperModel):
        return TimmVision(host)
    host.set_attn_implementation(NAME)
    coca = architecture.coca
    if isinstance(host, CLIPVisionModel):
        assert coca is not None, "CLIP's image tower has no poolers of its own"
        return PooledVision(ClipVision(host, normed=coca.pooling != "first"), coca)
    tower = host.vision_model if isinstance(host, SiglipModel | Siglip2Model) else host
    assert isinstance(tower, SiglipVisionModel | Siglip2VisionModel)
    return Vision(tower) if coca is None else PooledVision(Vision(tower), coca)


def pair_host(architecture: Architecture, pair: PairShape, folder: Path | None = None) -> TowerHost:
    """The towers of a pair, each from its own source; OpenSigLIP towers from `folder`, or new."""
    vision: PreTrainedModel
    if pair.vision is not None:
        vision = load_tower(pair.vision, "--vision")
    elif folder is not None:
        vision = load_tower(str(folder / "vision"), "the image tower")
    else:
        vision = new_host(replace(architecture, text=None, pooling=True), 0)
        initialise(vision)
    return TowerHost(vision, None if pair.text is None else load_tower(pair.text, "--text"))


def text_of(architecture: Architecture, vocabulary: int, width: int) -> Text | Unimodal:
    """A text tower with embeddings as wide as the image's, for a host without one."""
    assert architecture.text is not None
    if architecture.coca is not None:
        return Unimodal(architecture.text, architecture.coca, vocabulary, architecture.length, architecture.pad_id)
    tower = SiglipTextModel(SiglipTextConfig(**_text_facts(architecture, architecture.text, vocabulary, width)))
    tower.set_attn_implementation(NAME)
    return Text(tower)


def _tower(shape: Shape) -> dict[str, Any]:
    return {
        "hidden_size": shape.width,
        "num_hidden_layers": shape.depth,
        "intermediate_size": shape.mlp,
        "num_attention_heads": shape.heads,
        "hidden_act": shape.activation,
    }


def _text_facts(architecture: Architecture, shape: Shape, vocabulary: int, width: int) -> dict[str, Any]:
    return _tower(shape) | {
        "vocab_size": vocabulary,
        "max_position_embeddings": architecture.length,
        "projection_size": width,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
    }


def new_host(architecture: Architecture, vocabulary: int) -> PreTrainedModel:
    """A new model of transformers that owns the towers: SiglipModel, or the image tower alone."""
    side, patch = architecture.resolution, architecture.patch
    vision = _tower(architecture.vision) | {"image_size": side, "patch_size": patch}
    patches = _tower(architecture.vision) | {"num_patches": (side // patch) ** 2, "patch_size": patch}  # NaFlex
    if architecture.coca is not None and architecture.coca.clip:
        return CLIPVisionModel(CLIPVisionConfig(**vision))
    if architecture.text is None or architecture.coca is not None:
        # No text to compare with, or poolers of CoCa's: a MAP head would never get a gradient.
        pooled = architecture.pooling and architecture.coca is None
        if architecture.naflex:
            return Siglip2VisionModel(Siglip2VisionConfig(**patches, vision_use_head=pooled))
        return SiglipVisionModel(SiglipVisionConfig(**vision, vision_use_head=pooled))
    text = _text_facts(architecture, architecture.text, vocabulary, architecture.vision.width)
    if architecture.naflex:
        naflex = Siglip2VisionConfig(**patches).to_dict()
        return Siglip2Model(Siglip2Config(vision_config=naflex, text_config=Siglip2TextConfig(**text).to_dict()))
    return SiglipModel(
        SiglipConfig(
            vision_config=SiglipVisionConfig(**vision).to_dict(), text_config=SiglipTextConfig(**text).to_dict()
        )
    )
