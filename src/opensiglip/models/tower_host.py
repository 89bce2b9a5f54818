"""Pretrained towers as they lie on disk: each a transformers folder of its own."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from opensiglip.errors import UserError
from opensiglip.models.limits import check_room, check_sizes, refuse_not_finite, stored_in
from opensiglip.models.quiet_library import no_bars

PARTS = ("vision", "text")


class TowerHost(nn.Module):
    """The transformers models that own a model's towers, at least one of them of another make."""

    def __init__(self, vision: PreTrainedModel, text: PreTrainedModel | None) -> None:
        super().__init__()
        self.vision, self.text = vision, text

    def save_pretrained(self, folder: str | Path) -> None:
        """Each tower as a transformers folder, vision/ and text/, which plain `AutoModel` opens."""
        with no_bars():
            for part in PARTS:
                if getattr(self, part) is not None:
                    getattr(self, part).save_pretrained(Path(folder) / part)


def load_tower(place: str, flag: str) -> PreTrainedModel:
    """A transformers model by folder or hub id, all its weights its own. Raises UserError.

    `flag`: what names it, for messages. No code from a folder runs, and nothing is unpickled.
    """
    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        check_sizes(config.to_dict(), place)
        with torch.device("meta"):
            skeleton: PreTrainedModel = AutoModel.from_config(config, trust_remote_code=False)
        if torch.get_default_device().type == "meta":  # only shapes are wanted
            return skeleton
        if Path(place).is_dir():
            check_room(place, skeleton, stored_in(Path(place)))
        made: Any = AutoModel.from_pretrained(
            place, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except UserError:
        raise
    except Exception as error:  # hub, file and config errors of a dozen types
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"{flag} {place} can't be read ({reason}); give a transformers folder or hub id.") from error
    tower: PreTrainedModel
    tower, report = made
    if missing := sorted(name for name in report["missing_keys"] if not name.startswith("pooler.")):
        raise UserError(f"{flag} {place} has no {missing[0]}, which its network needs; fetch or save it again, whole.")
    with torch.no_grad():
        for name in report["missing_keys"]:  # read by nothing; random, they would change the key of cached states
            tower.get_parameter(name).zero_()
    refuse_not_finite(place, tower.state_dict())
    return tower
