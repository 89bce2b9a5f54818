"""CLIP_benchmark's datasets and metrics on a trained model, as its model type `opensiglip`:

python -m opensiglip.bridge.clip_benchmark eval --model_type opensiglip --model runs/mine --pretrained own ...
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.data.example import Example
from opensiglip.data.fields.frame import Geometry
from opensiglip.errors import UserError
from opensiglip.inference.images import load_image
from opensiglip.inference.predictor import Predictor

TYPE = "opensiglip"


class Texts(list[str]):
    """What its tokenizers return, which is moved to a device; the model itself tokenizes."""

    def to(self, device: Any) -> "Texts":
        return self


@dataclass(frozen=True)
class Transform:
    """A PIL image in the model's frame, [3, h, w] uint8."""

    frame: Geometry

    def __call__(self, image: Image.Image) -> Tensor:
        return self.frame.apply(Example(load_image(image), ()), None)[0]


class CLIPModel(nn.Module):
    """The two methods that CLIP_benchmark calls; they return unit embeddings in the model's own precision."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.predictor = predictor

    def encode_image(self, images: Tensor) -> Tensor:
        """Images [B, 3, h, w] of `Transform` -> [B, D] float32."""
        return self.predictor.embed_framed(list(images.cpu())).to(images.device)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Texts -> [T, D] float32. Raises UserError without a text tower."""
        return self.predictor.embed_texts(texts).to(self.predictor.device)


def load(
    model_name: str, pretrained: str = "", cache_dir: str | None = None, device: str | torch.device = "cpu"
) -> tuple[CLIPModel, Transform, Callable[[Sequence[str]], Texts]]:
    """Model, transform and tokenizer of a run, its model/ folder, or a hub id.

    `pretrained` and `cache_dir` are CLIP_benchmark's and are ignored. Raises UserError if the model can't be read.
    """
    predictor = Predictor(Pretrained.open(model_name), device=device)
    return CLIPModel(predictor), Transform(predictor.frame), Texts


def register() -> None:
    """Make `opensiglip` one of CLIP_benchmark's model types in this process. Raises UserError."""
    try:
        from clip_benchmark import models
    except ImportError as error:
        raise UserError(f"this needs {error.name}; `pip install clip-benchmark`.") from None
    if TYPE not in models.TYPE2FUNC:
        models.TYPE2FUNC[TYPE] = load
        models.MODEL_TYPES.append(TYPE)


def main() -> None:
    """CLIP_benchmark's own command line; errors of a model are one sentence with exit code 2."""
    try:
        register()
        from clip_benchmark.cli import main as command

        command()
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
