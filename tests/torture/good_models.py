"""A small good folder of every format that is read, to be damaged."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import peers
import torch
from big_vision import GOLDENS
from open_clip.coca_model import CoCa
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    SiglipModel,
    TimmWrapperConfig,
    TimmWrapperModel,
)

from opensiglip.checkpoints.formats.own import describe
from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.checkpoints.run_folder import RunFolder, learner_of, optimizer_of, state_of
from opensiglip.data.boxes import BoxFormat
from opensiglip.data.text import TextPipeline
from opensiglip.models.model import Model
from opensiglip.models.sizes import Architecture, CoCaShape, Shape

SHAPE = Shape(32, 2, 64, 2)
PLAIN = Architecture(32, 8, peers.LENGTH, SHAPE, SHAPE, SHAPE)


def ours(networks: Architecture) -> Callable[[Path], object]:
    """A finished run's model/ folder."""

    def make(folder: Path) -> None:
        torch.manual_seed(0)
        pipeline = TextPipeline.around(peers.tokenizer(), peers.LENGTH)
        model = Model.new(replace(networks, pad_id=pipeline.policy.pad_id), len(pipeline))
        Pretrained.of(model, pipeline, name="x", boxes=BoxFormat(), tasks=("cap",), languages=("en",)).save(folder)

    return make


def killed(folder: Path) -> None:
    """A run that has not ended, with one checkpoint; no checksums, which whoever damages it could write anew."""
    pipeline = TextPipeline.around(peers.tokenizer(), peers.LENGTH)
    networks, run = replace(PLAIN, pad_id=pipeline.policy.pad_id), RunFolder(folder)
    place = run.checkpoint(5)
    place.mkdir(parents=True)
    describe(place, networks, pipeline, BoxFormat(), ("cap",))
    config = {"recipe": "siglip2", "keywords": {"size": "tiny"}, "train": {"data": ["scenes"]}, "command": "opensiglip"}
    run.config.write_text(json.dumps(config))
    state = {f"model.{name}": x for name, x in Model.new(networks, len(pipeline)).state_dict().items()}
    save_file(state, learner_of(place))
    save_file({"x": torch.zeros(1)}, optimizer_of(place))
    counts = {"step": 5, "skipped_steps": 0, "read": 40, "progress": 0.5, "skipped_examples": {}}
    state_of(place).write_text(json.dumps(counts))


def clip(folder: Path) -> None:
    text = CLIPTextConfig(**peers.TOWER, vocab_size=64, max_position_embeddings=16, eos_token_id=1, pad_token_id=0)
    vision = CLIPVisionConfig(**peers.TOWER, image_size=32, patch_size=8)
    CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=24)
    ).save_pretrained(folder)
    peers.tokenizer().save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)


def coca(folder: Path) -> None:
    text = {"context_length": 16, "vocab_size": 64, "width": 32, "heads": 4, "layers": 2}
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8, "attentional_pool": True}
    vision |= {"attn_pooler_queries": 6, "attn_pooler_heads": 4, "output_tokens": True}
    read = {"embed_cls": True, "output_tokens": True}
    config = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text | read, "multimodal_cfg": text}
    folder.mkdir(parents=True)
    model = CoCa(**config)
    torch.nn.init.normal_(model.text_decoder.text_projection)  # theirs is left as memory was
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    peers.tokenizer().save_pretrained(folder)


def wrapped_timm(folder: Path) -> None:
    config = TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args={"img_size": 32, "depth": 1})
    TimmWrapperModel(config).save_pretrained(folder)


def adapter(folder: Path) -> None:
    peers.siglip2(folder / "base")
    config = LoraConfig(target_modules=["q_proj", "fc1"], r=4, lora_alpha=6)
    get_peft_model(SiglipModel.from_pretrained(folder / "base"), config).save_pretrained(folder)
    config_file = folder / "adapter_config.json"
    config_file.write_text(json.dumps(json.loads(config_file.read_text()) | {"base_model_name_or_path": "base"}))


def arrays(name: str) -> Callable[[Path], object]:
    """big_vision's .npz."""

    def make(folder: Path) -> None:
        folder.mkdir(parents=True)
        shutil.copyfile(GOLDENS / f"{name}_big_vision.npz", folder / "model.npz")

    return make


MAKERS: dict[str, Callable[[Path], object]] = {
    "run": ours(PLAIN),
    "run, NaFlex": ours(replace(PLAIN, naflex=True)),
    "run, CoCa": ours(replace(PLAIN, coca=CoCaShape(6, 4, 32), logit_bias=False)),
    "run, PaLI": ours(replace(PLAIN, text=None, decoder=None, t5=SHAPE)),
    "run, killed": killed,
    "SigLIP": peers.siglip,
    "SigLIP 2": peers.siglip2,
    "SigLIP 2 NaFlex": peers.siglip2_naflex,
    "SigLIP's image tower": peers.siglip_vision,
    "CLIP": clip,
    "open_clip SigLIP": peers.open_clip_siglip,
    "open_clip CoCa": coca,
    "timm SigLIP": peers.timm_siglip,
    "timm ViT": wrapped_timm,
    "LoRA adapter": adapter,
    "big_vision SigLIP": arrays("siglip"),
    "big_vision CapPa": arrays("cappa"),
}
