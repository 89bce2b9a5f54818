"""Open pretraining of vision-language encoders: `train` a recipe, load a `Model`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Answer",
    "Caption",
    "Continue",
    "LocalToGlobal",
    "MaskedPatches",
    "Model",
    "PreTrainingCallback",
    "PreTrainingCollator",
    "SigLIP2Loss",
    "SiglipForPreTraining",
    "Sigmoid",
    "Softmax",
    "TextPipeline",
    "UserError",
    "__version__",
    "evaluate",
    "export",
    "list_recipes",
    "load",
    "open_source",
    "train",
]

if TYPE_CHECKING:
    from opensiglip.bridge.collator import PreTrainingCollator
    from opensiglip.bridge.loss import SigLIP2Loss
    from opensiglip.bridge.model import PreTrainingCallback, SiglipForPreTraining
    from opensiglip.checkpoints.export import export
    from opensiglip.data.sources.registry import open_source
    from opensiglip.data.text import TextPipeline
    from opensiglip.errors import UserError
    from opensiglip.evaluation.run import evaluate
    from opensiglip.inference.predictor import load
    from opensiglip.models.model import Model
    from opensiglip.objectives.captioning import Answer, Caption, Continue
    from opensiglip.objectives.contrastive import Sigmoid, Softmax
    from opensiglip.objectives.distillation import LocalToGlobal, MaskedPatches
    from opensiglip.recipes import list_recipes
    from opensiglip.training.run import train

# The public names and the modules that define them. No name here is that of a package, so neither hides the other.
HOMES = {
    "Answer": "objectives.captioning",
    "Caption": "objectives.captioning",
    "Continue": "objectives.captioning",
    "LocalToGlobal": "objectives.distillation",
    "MaskedPatches": "objectives.distillation",
    "Model": "models.model",
    "PreTrainingCallback": "bridge.model",
    "PreTrainingCollator": "bridge.collator",
    "SigLIP2Loss": "bridge.loss",
    "Sigmoid": "objectives.contrastive",
    "SiglipForPreTraining": "bridge.model",
    "Softmax": "objectives.contrastive",
    "TextPipeline": "data.text",
    "UserError": "errors",
    "evaluate": "evaluation.run",
    "export": "checkpoints.export",
    "list_recipes": "recipes",
    "load": "inference.predictor",
    "open_source": "data.sources.registry",
    "train": "training.run",
}


def __getattr__(name: str) -> Any:
    """The public names, imported when first used: `opensiglip --help` need not wait for torch."""
    if name not in HOMES:
        raise AttributeError(f"module 'opensiglip' has no attribute {name!r}")
    return getattr(import_module(f"opensiglip.{HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
