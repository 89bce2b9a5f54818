"""ONNX: an encoder of images and one of texts, free in batch size, each compared with ours by onnxruntime."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opensiglip.errors import UserError
from opensiglip.models.model import Model

TOLERANCE = 1e-5  # of embeddings of length 1, float32
LARGE = 1 << 30  # bytes from which weights lie in a file of their own; ONNX holds 2 GiB at most


class ImageEncoder(nn.Module):
    """pixels [B, 3, H, W] -> embedding [B, D] of length 1 where the tower pools, and tokens [B, N, D]."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.vision = model.vision

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        features = self.vision(pixel_values)
        if features.pooled is None:
            return (features.tokens,)
        return F.normalize(features.pooled, dim=-1), features.tokens


class TextEncoder(nn.Module):
    """ids [B, L] -> embedding [B, D] of length 1."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.text = model.text

    def forward(self, input_ids: Tensor) -> Tensor:
        assert self.text is not None
        return F.normalize(self.text(input_ids).pooled, dim=-1)


def write_onnx(folder: Path, model: Model) -> dict[str, Any]:
    """Write image_encoder.onnx and, with a text tower, text_encoder.onnx; return what the sidecar must say.

    Raises UserError where the export's libraries are missing, or onnxruntime computes something else than we do.
    """
    try:
        import onnxruntime  # type: ignore[import-untyped]
        import onnxscript  # noqa: F401 - torch.onnx needs it
    except ImportError as error:
        raise UserError(
            '--format onnx needs onnx, onnxscript and onnxruntime: pip install "opensiglip[onnx]".'
        ) from error
    side, generator = model.architecture.resolution, torch.Generator().manual_seed(0)
    pixels = torch.rand(3, 3, side, side, generator=generator) * 2 - 1
    names = ["last_hidden_state"] if model.text is None and not model.architecture.pooling else None
    encoders: list[tuple[str, nn.Module, str, Tensor, list[str]]] = [
        ("image", ImageEncoder(model), "pixel_values", pixels, names or ["image_embeds", "last_hidden_state"])
    ]
    if model.text is not None:
        ids = torch.randint(model.vocabulary, (3, model.architecture.length), generator=generator)
        encoders.append(("text", TextEncoder(model), "input_ids", ids, ["text_embeds"]))
    for name, encoder, field, inputs, outputs in encoders:
        path = folder / f"{name}_encoder.onnx"
        _write(path, encoder.eval(), field, inputs[:2], outputs)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        with torch.no_grad():
            expected = encoder(inputs)
        expected = expected if isinstance(expected, tuple) else (expected,)
        found = session.run(None, {field: inputs.numpy()})
        # Embeddings have length 1; tokens are compared by their own scale.
        scales = [1.0 if x.dim() == 2 else max(1.0, float(x.abs().max())) for x in expected]
        worst = max(
            float(np.abs(theirs - ours.numpy()).max()) / scale
            for theirs, ours, scale in zip(found, expected, scales, strict=True)
        )
        print(
            f"{path.name}: onnxruntime differs by at most {worst:.1e}, on another batch size than it was exported with"
        )
        if not worst <= TOLERANCE:
            raise UserError(
                f"{path} computes something else than the model ({worst:.1e}); update onnx and onnxruntime."
            )
    if model.text is None:
        return {}
    return {"logit_scale": float(model.logit_scale.detach().exp()), "logit_bias": float(model.logit_bias.detach())}


def _write(path: Path, encoder: nn.Module, field: str, inputs: Tensor, outputs: list[str]) -> None:
    size = sum(p.numel() * p.element_size() for p in encoder.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.export, about its own parts
        torch.onnx.export(
            encoder,
            (inputs,),
            path,
            input_names=[field],
            output_names=outputs,
            dynamic_shapes={field: {0: torch.export.Dim("batch")}},
            dynamo=True,
            external_data=size > LARGE,
            verbose=False,
        )
