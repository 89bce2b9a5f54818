"""Open pretraining of vision-language encoders: `train` a recipe, `load` a model, `evaluate` and `export` it."""

import ast
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:  # the public names: this list is the only one
    from opensiglip.apps.evaluate import evaluate as evaluate
    from opensiglip.bridge.collator import PreTrainingCollator as PreTrainingCollator
    from opensiglip.bridge.loss import SigLIP2Loss as SigLIP2Loss
    from opensiglip.bridge.model import PreTrainingCallback as PreTrainingCallback
    from opensiglip.bridge.model import SiglipForPreTraining as SiglipForPreTraining
    from opensiglip.checkpoints.export import export as export
    from opensiglip.checkpoints.pretrained import Pretrained as Pretrained
    from opensiglip.data.sources.registry import open_source as open_source
    from opensiglip.data.text import TextPipeline as TextPipeline
    from opensiglip.errors import UserError as UserError
    from opensiglip.inference.predictor import load as load
    from opensiglip.models.model import Model as Model
    from opensiglip.objectives.captioning import Answer as Answer
    from opensiglip.objectives.captioning import Caption as Caption
    from opensiglip.objectives.captioning import Continue as Continue
    from opensiglip.objectives.contrastive import Sigmoid as Sigmoid
    from opensiglip.objectives.contrastive import Softmax as Softmax
    from opensiglip.objectives.distillation import LocalToGlobal as LocalToGlobal
    from opensiglip.objectives.distillation import MaskedPatches as MaskedPatches
    from opensiglip.recipes import list_recipes as list_recipes
    from opensiglip.training.run import train as train

# The module of each name above. A name is imported when it is first used: `opensiglip --help` need not wait for torch.
HOMES = {
    alias.name: node.module
    for node in ast.walk(ast.parse(Path(__file__).read_text(encoding="utf-8")))
    if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("opensiglip.")
    for alias in node.names
}
__all__ = ["__version__", *HOMES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'opensiglip' has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
