"""Open pretraining of vision-language encoders: `train` a recipe, load a `Model`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Model",
    "PreTrainingCallback",
    "PreTrainingCollator",
    "SigLIP2Loss",
    "SiglipForPreTraining",
    "TextPipeline",
    "UserError",
    "__version__",
    "load",
    "train",
]

if TYPE_CHECKING:
    from opensiglip.bridge.collator import PreTrainingCollator
    from opensiglip.bridge.loss import SigLIP2Loss
    from opensiglip.bridge.model import PreTrainingCallback, SiglipForPreTraining
    from opensiglip.data.text import TextPipeline
    from opensiglip.errors import UserError
    from opensiglip.models.model import Model
    from opensiglip.train.run import train
    from opensiglip.use.predictor import load


HOMES = {
    "Model": "opensiglip.models.model",
    "PreTrainingCallback": "opensiglip.bridge.model",
    "PreTrainingCollator": "opensiglip.bridge.collator",
    "SigLIP2Loss": "opensiglip.bridge.loss",
    "SiglipForPreTraining": "opensiglip.bridge.model",
    "TextPipeline": "opensiglip.data.text",
    "UserError": "opensiglip.errors",
    "load": "opensiglip.use.predictor",
    "train": "opensiglip.train.run",
}


def __getattr__(name: str) -> Any:
    """The public names, imported when first used: `opensiglip --help` need not wait for torch."""
    if name not in HOMES:
        raise AttributeError(f"module 'opensiglip' has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)
