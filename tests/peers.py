"""Tiny random checkpoints as each peer library makes and saves them, with what the peer computes."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

SIDE, PATCH, LENGTH, VOCABULARY = 32, 8, 64, 64
TOWER = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "num_attention_heads": 2}
Embed = Callable[[Tensor], Tensor]


@dataclass
class Peer:
    """A checkpoint on disk, and the peer's embeddings of length 1: of pixels [B, 3, S, S], of ids [B, L]."""

    folder: Path
    image: Embed
    text: Embed | None = None


def shaken(module: torch.nn.Module) -> Any:
    """Random everywhere, and so that no layer can be left out unseen."""
    torch.manual_seed(1)
    for name, parameter in module.named_parameters():
        torch.nn.init.normal_(parameter, std=0.2)
        if name.endswith("logit_bias"):
            torch.nn.init.constant_(parameter, -3.0)
        elif "norm" in name and name.endswith("weight"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return module.eval()


def pixels(count: int = 3) -> Tensor:
    """Images [B, 3, S, S] in [-1, 1]."""
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2)) * 2 - 1


def token_ids(count: int = 3) -> Tensor:
    """Texts [B, L]."""
    return torch.randint(VOCABULARY, (count, LENGTH), generator=torch.Generator().manual_seed(3))


def tokenizer(pad: str = "<pad>", eos: str = "<eos>", side: str = "right") -> PreTrainedTokenizerFast:
    """Letters behind ▁ for spaces, lower-cased, ended; as Gemma's for SigLIP 2, as c4_en for SigLIP with pad=eos."""
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz0123456789.,:;"]
    vocabulary = {token: place for place, token in enumerate(["<pad>", eos, "<unk>", *letters])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    inner.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    inner.post_processor = processors.TemplateProcessing(single=f"$A {eos}", special_tokens=[(eos, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=pad,
        eos_token=eos,
        unk_token="<unk>",
        padding_side=side,
        model_max_length=LENGTH,
    )


def _around(model: SiglipModel | Siglip2Model, folder: Path, **square: Any) -> Peer:
    model.save_pretrained(folder)

    def image(x: Tensor) -> Tensor:
        given = {"pixel_values": x} if not square else naflex(x)
        return F.normalize(model.get_image_features(**given).pooler_output, dim=-1)

    return Peer(folder, image, lambda ids: F.normalize(model.get_text_features(ids).pooler_output, dim=-1))


def naflex(x: Tensor) -> dict[str, Tensor]:
    """Square images as Siglip2Model takes them."""
    side = SIDE // PATCH
    rows = x.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)  # [B, 3, h, w, p, p]
    return {
        "pixel_values": rows.permute(0, 2, 3, 4, 5, 1).reshape(len(x), side * side, -1),
        "pixel_attention_mask": torch.ones(len(x), side * side, dtype=torch.long),
        "spatial_shapes": torch.tensor([[side, side]] * len(x)),
    }


def siglip(folder: Path, *, v1: bool = True, side: int = SIDE, patch: int = PATCH) -> Peer:
    """A SiglipModel with tokenizer and processor: v1's, or v2's at fixed resolution, which is the same class."""
    vision = TOWER | {"image_size": side, "patch_size": patch}
    text = TOWER | {"vocab_size": VOCABULARY, "max_position_embeddings": LENGTH, "projection_size": 32}
    model = shaken(SiglipModel(SiglipConfig(vision_config=vision, text_config=text)))
    made = tokenizer("</s>", "</s>") if v1 else tokenizer()
    made.save_pretrained(folder)
    SiglipImageProcessor(size={"height": side, "width": side}).save_pretrained(folder)
    return _around(model, folder)


def siglip2(folder: Path) -> Peer:
    """A SigLIP 2 at fixed resolution."""
    return siglip(folder, v1=False)


def siglip2_naflex(folder: Path) -> Peer:
    """A Siglip2Model, looked at through square images."""
    vision = TOWER | {"num_patches": (SIDE // PATCH) ** 2, "patch_size": PATCH}
    text = TOWER | {"vocab_size": VOCABULARY, "max_position_embeddings": LENGTH, "projection_size": 32}
    model = shaken(Siglip2Model(Siglip2Config(vision_config=vision, text_config=text)))
    tokenizer().save_pretrained(folder)
    return _around(model, folder, square=True)


def siglip_vision(folder: Path) -> Peer:
    """SigLIP's image tower alone."""
    model = shaken(SiglipVisionModel(SiglipVisionConfig(**TOWER, image_size=SIDE, patch_size=PATCH)))
    model.save_pretrained(folder)
    return Peer(folder, lambda x: F.normalize(model(x).pooler_output, dim=-1))


@register_model
def vit_tiny_patch8_siglip_32(
    pretrained_cfg: Any = None, pretrained_cfg_overlay: Any = None, cache_dir: Any = None, **kwargs: Any
) -> VisionTransformer:
    """timm's SigLIP ViT, small, with the exact gelu, as timm has the base model."""
    kwargs = {"img_size": SIDE, "global_pool": "map", "class_token": False} | kwargs
    kwargs.pop("pretrained", None)
    model = VisionTransformer(patch_size=PATCH, embed_dim=32, depth=2, num_heads=2, mlp_ratio=2.0, **kwargs)
    model.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "input_size": (3, SIDE, SIDE)}
    return model


def timm_siglip(folder: Path, **changes: Any) -> Peer:
    """A timm SigLIP ViT; `changes` make another ViT of it."""
    return timm_vit(folder, "vit_tiny_patch8_siglip_32", **changes)


def timm_vit(folder: Path, architecture: str, **changes: Any) -> Peer:
    """Any encoder of timm's, saved as its hub folders are."""
    model = shaken(timm.create_model(architecture, num_classes=0, **changes))
    config = {
        "architecture": architecture,
        "num_classes": 0,
        "model_args": changes,
        "pretrained_cfg": model.pretrained_cfg,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    return Peer(folder, lambda x: F.normalize(model(x), dim=-1))


def open_clip_siglip(folder: Path) -> Peer:
    """An open_clip SigLIP 2 as its hub folders are: config, safetensors, tokenizer."""
    config: dict[str, Any] = {
        "embed_dim": 32,
        "init_logit_bias": -10,
        "vision_cfg": {
            "image_size": SIDE,
            "timm_model_name": "vit_tiny_patch8_siglip_32",
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            "context_length": LENGTH,
            "vocab_size": VOCABULARY,
            "width": 32,
            "heads": 2,
            "layers": 2,
            "mlp_ratio": 2.0,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
            "act_kwargs": {"approximate": "tanh"},
        },
    }
    model = shaken(open_clip.model.CustomTextCLIP(**config))
    tokenizer().save_pretrained(folder)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config | {"custom_text": True}}))
    return Peer(
        folder, lambda x: model.encode_image(x, normalize=True), lambda ids: model.encode_text(ids, normalize=True)
    )


def gap(ours: Tensor | np.ndarray, theirs: Tensor | np.ndarray) -> float:
    """The largest difference, printed for docs/how-to/pretrained-weights.md."""
    found = float((torch.as_tensor(ours) - torch.as_tensor(theirs)).abs().max())
    print(f"gap {found:.1e}")
    return found


def photographs(folder: Path, count: int = 3) -> Tensor:
    """Pictures as an image processor of the folder sees them [B, 3, S, S]."""
    noise = np.random.default_rng(0).integers(0, 256, (count, 50, 70, 3), dtype=np.uint8)
    result: Tensor = AutoImageProcessor.from_pretrained(folder)(list(noise), return_tensors="pt")["pixel_values"]
    return result
