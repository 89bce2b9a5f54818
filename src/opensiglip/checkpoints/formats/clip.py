"""transformers' CLIPModel: other networks than ours, with their attributes, to be judged and asked but not trained."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from opensiglip.checkpoints.contents import Contents, frame_of
from opensiglip.checkpoints.source import image_processor, read_tensors
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError, first_line
from opensiglip.models.limits import check_room
from opensiglip.models.sizes import Architecture, Shape
from opensiglip.types import Features


class ClipImages(nn.Module):
    """CLIP's image tower and its projection into the texts' space."""

    mean: Tensor
    std: Tensor

    def __init__(self, host: CLIPModel, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.tower, self.projection = host.vision_model, host.visual_projection
        for name, value in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(value).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Features:
        """pixels [B, 3, H, W] in [-1, 1] -> pooled [B, E], tokens [B, N, D] without the class token."""
        output = self.tower(pixel_values=((pixels + 1) / 2 - self.mean) / self.std)
        tokens = self.tower.post_layernorm(output.last_hidden_state[:, 1:])
        return Features(self.projection(output.pooler_output), tokens)

    def to_text(self, tokens: Tensor) -> Tensor:
        """tokens [B, N, D] -> [B, N, E]: each patch by the class token's way into the texts' space."""
        return self.projection(tokens)


class ClipTexts(nn.Module):
    """CLIP's text tower and its projection."""

    def __init__(self, host: CLIPModel) -> None:
        super().__init__()
        self.tower, self.projection = host.text_model, host.text_projection

    def forward(self, ids: Tensor) -> Features:
        """ids [B, L] -> pooled [B, E], tokens [B, L, D]. It is causal, so padding after the end changes nothing."""
        output = self.tower(input_ids=ids)
        return Features(self.projection(output.pooler_output), output.last_hidden_state)


class Clip(nn.Module):
    """What `Pretrained.model` has, of a CLIP: no bias, no decoder."""

    decoder = pali = logit_bias = None

    def __init__(self, host: CLIPModel, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.vision, self.text = ClipImages(host, mean, std), ClipTexts(host)
        self.logit_scale = host.logit_scale
        config: Any = host.config
        image, text = config.vision_config, config.text_config
        self.architecture = Architecture(
            int(image.image_size),
            int(image.patch_size),
            int(text.max_position_embeddings),
            _shape(image),
            _shape(text),
            logit_bias=False,
        )
        self.vocabulary = int(text.vocab_size)


def read(folder: Path, name: str) -> Contents:
    """What lies in a folder of a CLIPModel. Raises UserError."""
    state = read_tensors(folder, "model.safetensors", name)
    try:
        config = CLIPConfig.from_pretrained(folder)
        with torch.device("meta"):
            check_room(name, CLIPModel(config), sum(tensor.numel() for tensor in state.values()))
        made: Any = CLIPModel.from_pretrained(None, config=config, state_dict=state, output_loading_info=True)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"{name} can't be read ({first_line(error)}); fetch it again, with its safetensors.") from error
    host, report = made
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"{name} has no {missing[0]}, which its config.json names; fetch it again.")
    processor = image_processor(folder)
    mean, std = processor.get("image_mean"), processor.get("image_std")
    if not (isinstance(mean, list) and isinstance(std, list) and len(mean) == len(std) == 3):
        raise UserError(f"{name} has no image processor with image_mean and image_std; fetch it again.")
    model = Clip(host, mean, std).eval()
    pipeline = TextPipeline.of_clip(folder, model.architecture.length, name)
    return Contents(name, model, frame_of(model.architecture), "transformers CLIPModel", pipeline)


def _shape(part: Any) -> Shape:
    return Shape(part.hidden_size, part.num_hidden_layers, part.intermediate_size, part.num_attention_heads)
