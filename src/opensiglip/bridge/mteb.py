"""mteb's tasks on a trained model; those with images are MIEB.

import mteb
from opensiglip.bridge.mteb import MTEBModel

mteb.evaluate(MTEBModel("runs/mine"), mteb.get_benchmark("MIEB(lite)").tasks)
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import xxhash
from torch import Tensor, nn

from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.errors import UserError
from opensiglip.inference.device import best_device
from opensiglip.inference.predictor import Predictor


class MTEBModel:
    """mteb's `EncoderProtocol`: unit embeddings of images and texts; an item with both is embedded as their sum."""

    def __init__(
        self, model_name: str | Path, revision: str | None = None, *, device: str | None = None, **_: Any
    ) -> None:
        """`model_name`: a run, its model/ folder, or a hub id; the other arguments are mteb's; `revision` is ignored.

        Raises UserError if the model can't be read.
        """
        self.predictor = Predictor(Pretrained.open(model_name), device=device or best_device())

    def encode(self, inputs: Iterable[Mapping[str, Any]], *, task_metadata: Any, **_: Any) -> np.ndarray:
        """Embeddings [N, D] float32 of batches with the columns `image` or `text`, or both. Raises UserError."""
        parts = [self._embed(batch, task_metadata.name) for batch in inputs]
        return torch.cat(parts).numpy()

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines [N, M] of embeddings [N, D] and [M, D]."""
        return _rows(embeddings1) @ _rows(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines [N] of embeddings [N, D] and [N, D]."""
        return (_rows(embeddings1) * _rows(embeddings2)).sum(-1)

    @cached_property
    def mteb_model_meta(self) -> Any:
        """The model's metadata in mteb's results. The revision is a digest of the weights."""
        try:
            from mteb.models.model_meta import ModelMeta, ScoringFunction
        except ImportError as error:
            raise UserError(f"MTEBModel needs {error.name}; `pip install mteb`.") from None
        model, name = self.predictor.pretrained.model, Path(self.predictor.name)
        facts = {
            "name": f"opensiglip/{(name.resolve().parent if name.name == 'model' else name).name}",
            "revision": digest(model),
            "n_parameters": sum(weights.numel() for weights in model.parameters()),
            "modalities": ["image", "text"] if self.predictor.has_text else ["image"],
            "framework": ["PyTorch"],
            "similarity_fn_name": ScoringFunction.COSINE,
            "use_instructions": False,
        }
        return ModelMeta.create_empty(overwrites=facts)

    def _embed(self, batch: Mapping[str, Sequence[Any]], task: str) -> Tensor:
        found = []
        if "image" in batch:
            found.append(self.predictor.embed_images(list(batch["image"])))
        if "text" in batch:
            found.append(self.predictor.embed_texts(list(batch["text"])))
        if not found:
            raise UserError(
                f"mteb's task {task} has {', '.join(batch)}, which is neither image nor text; leave it out."
            )
        return F.normalize(torch.stack(found).sum(0), dim=-1)


def digest(model: nn.Module) -> str:
    """Digest of all weights, by name."""
    found = xxhash.xxh3_128()
    for name, weights in model.named_parameters():
        found.update(name.encode())
        found.update(weights.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _rows(embeddings: Any) -> Tensor:
    return F.normalize(torch.atleast_2d(torch.as_tensor(embeddings).float()), dim=-1)
