"""A timm encoder as the image tower: any ViT that returns its tokens, in transformers' wrapper, so it exports too."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TimmWrapperConfig, TimmWrapperModel

from opensiglip.errors import UserError, first_line
from opensiglip.json_file import load_json
from opensiglip.models.limits import check_room, check_sizes, refuse_not_finite, stored_in
from opensiglip.types import Features


class TimmVision(nn.Module):
    """Patch tokens of a timm ViT after its final norm, without class and register tokens; pooled as it was trained."""

    mean: Tensor
    std: Tensor

    def __init__(self, tower: TimmWrapperModel) -> None:
        super().__init__()
        self.tower = tower
        inner = tower.timm_model
        self.width, self.prefix = int(inner.num_features), int(getattr(inner, "num_prefix_tokens", 0))
        facts: dict[str, Any] = inner.pretrained_cfg
        for name in ("mean", "std"):  # where the weights were trained otherwise than on [-1, 1]
            value = torch.tensor(facts.get(name) or (0.5, 0.5, 0.5)).view(1, 3, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def forward(self, pixels: Tensor) -> Features:
        """pixels [B, 3, H, W] in [-1, 1] -> pooled [B, D], what its classifier would read; tokens [B, N, D]."""
        tokens = self.tower.timm_model.forward_features(((pixels + 1) / 2 - self.mean) / self.std)
        return Features(self.tower.timm_model.forward_head(tokens, pre_logits=True), tokens[:, self.prefix :])


def load(name: str, what: str | None = None) -> TimmWrapperModel:
    """The encoder of a folder or hub id such as timm/vit_base_patch16_224.augreg_in21k. Raises UserError."""
    try:
        check_size(name)
        made: Any = TimmWrapperModel.from_pretrained(name, use_safetensors=True, output_loading_info=True)
    except UserError:
        raise
    except Exception as error:  # hub, file and timm errors of a dozen types
        reason = first_line(error)
        raise UserError(
            f"{what or f'--encoder {name!r}'} can't be loaded ({reason}); give a timm hub id or a saved folder."
        ) from error
    tower: TimmWrapperModel
    tower, report = made
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"{what or name} has no {missing[0]}, which its encoder needs; fetch or save it again, whole.")
    refuse_not_finite(name, tower.state_dict())
    return tower


def check_size(name: str) -> None:
    """Raises UserError where the config of a folder has a size that no encoder has, or more weights than its files."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return
    config = folder / "config.json"
    check_sizes(load_json(config), config)
    with torch.device("meta"):
        encoder = TimmWrapperModel(TimmWrapperConfig.from_pretrained(folder))
    check_room(name, encoder, stored_in(folder))
