"""ONNX: an encoder of images and one of texts, each compared with ours by onnxruntime.

Both are free in batch size; NaFlex's also in the number of patches and in aspect ratio: its positions are resized for
the whole batch by one product (`Vision.places`), so the graph has no loop and no shape in it.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opensiglip.data.fields.naflex import pack
from opensiglip.errors import UserError
from opensiglip.models.model import Model
from opensiglip.types import Features, Patches

TOLERANCE = 1e-5  # of embeddings of length 1, float32
LARGE = 1 << 30  # bytes from which weights lie in a file of their own; ONNX holds 2 GiB at most


class ImageEncoder(nn.Module):
    """pixels [B, 3, H, W] -> embedding [B, D] of length 1 where the tower pools, and tokens [B, N, D]."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.vision = model.vision

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        return outputs(self.vision(pixel_values))


class NaFlexEncoder(nn.Module):
    """The same of images of any aspect ratio, as transformers' Siglip2ImageProcessor cuts them.

    pixel_values [B, N, P * P * 3], pixel_attention_mask [B, N] int32, spatial_shapes [B, 2] int64.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.vision = model.vision

    def forward(self, pixel_values: Tensor, pixel_attention_mask: Tensor, spatial_shapes: Tensor) -> tuple[Tensor, ...]:
        return outputs(self.vision(Patches(pixel_values, spatial_shapes, pixel_attention_mask.bool())))


def outputs(features: Features) -> tuple[Tensor, ...]:
    """What the image encoders give."""
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


@dataclass(frozen=True)
class Graph:
    """One encoder to be written: what it is exported with, and what it is checked with, of other sizes."""

    name: str
    encoder: nn.Module
    inputs: dict[str, Tensor]
    others: tuple[dict[str, Tensor], ...]
    outputs: list[str]
    free: dict[str, int]  # by input, how many of its first axes may have any size


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
    for graph in graphs(model):
        path = folder / f"{graph.name}_encoder.onnx"
        _write(path, graph)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        worst = 0.0
        for inputs in (graph.inputs, *graph.others):
            with torch.no_grad():
                expected = graph.encoder(**inputs)
            expected = expected if isinstance(expected, tuple) else (expected,)
            found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
            for theirs, ours in zip(found, expected, strict=True):
                # Embeddings have length 1; tokens are compared by their own scale.
                scale = 1.0 if ours.dim() == 2 else max(1.0, float(ours.abs().max()))
                worst = max(worst, float(np.abs(theirs - ours.numpy()).max()) / scale)
        sizes = "batch sizes and aspect ratios" if graph.free.get("pixel_values") == 2 else "batch sizes"
        print(f"{path.name}: onnxruntime differs by at most {worst:.1e}, on several {sizes}")
        if not worst <= TOLERANCE:
            raise UserError(f"{path} computes other values than the model ({worst:.1e}); update onnx and onnxruntime.")
    if model.text is None:
        return {}
    return {"logit_scale": float(model.logit_scale.detach().exp()), "logit_bias": float(model.logit_bias.detach())}


def graphs(model: Model) -> list[Graph]:
    """The encoders of a model."""
    networks, generator = model.architecture, torch.Generator().manual_seed(0)
    side, count = networks.resolution, networks.resolution // networks.patch
    names = ["last_hidden_state"] if model.text is None and not networks.pooling else None
    given = names or ["image_embeds", "last_hidden_state"]

    def noise(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator) * 2 - 1

    if networks.naflex:
        half, twice = max(1, count // 2), 2 * count
        shapes = [(count, count), (half, twice)], [(twice, half)], [(half, count), (count, half), (half + 1, twice)]
        patch = networks.patch
        first, *others = (
            _as_processed(
                pack([noise(3, h * patch, w * patch) for h, w in some], patch, 1 + max(h * w for h, w in some))
            )
            for some in shapes
        )
        free = {"pixel_values": 2, "pixel_attention_mask": 2, "spatial_shapes": 1}
        made = [Graph("image", NaFlexEncoder(model).eval(), first, tuple(others), given, free)]
    else:
        images = [{"pixel_values": noise(size, 3, side, side)} for size in (2, 1, 3)]
        made = [Graph("image", ImageEncoder(model).eval(), images[0], tuple(images[1:]), given, {"pixel_values": 1})]
    if model.text is not None:
        ids = torch.randint(model.vocabulary, (3, networks.length), generator=generator)
        texts = [{"input_ids": ids[:size]} for size in (2, 1, 3)]
        made.append(
            Graph("text", TextEncoder(model).eval(), texts[0], tuple(texts[1:]), ["text_embeds"], {"input_ids": 1})
        )
    return made


def _as_processed(image: Patches) -> dict[str, Tensor]:
    return {
        "pixel_values": image.values,
        "pixel_attention_mask": image.valid.int(),
        "spatial_shapes": image.shapes,
    }


def _write(path: Path, graph: Graph) -> None:
    size = sum(p.numel() * p.element_size() for p in graph.encoder.parameters())
    axes = {name: dict.fromkeys(range(count), torch.export.Dim.DYNAMIC) for name, count in graph.free.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.export, about its own parts
        program = torch.export.export(graph.encoder, (), graph.inputs, dynamic_shapes=axes, strict=False)
        torch.onnx.export(
            program,
            (),
            path,
            input_names=list(graph.inputs),
            output_names=graph.outputs,
            dynamo=True,
            external_data=size > LARGE,
            verbose=False,
        )
