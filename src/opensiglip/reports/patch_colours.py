"""Patch features as colours: which patches the image tower tells apart, and which it takes for alike."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from opensiglip.data.example import Source
from opensiglip.evaluation.encode import encode_examples
from opensiglip.float64 import widen
from opensiglip.inference.predictor import Predictor
from opensiglip.reports.drawing import SIDE, as_uri
from opensiglip.reports.maps import colour_map

COUNT = 6
EXTREMES = 0.01  # of all patches are brighter or darker than the colours go


@dataclass(frozen=True)
class Patches:
    """A held-out image, and its patches as each model sees them."""

    name: str
    image: str  # data URI
    maps: dict[str, str]  # by the model's name: data URI


def patch_maps(models: Mapping[str, Predictor], source: Source) -> list[Patches]:
    """The first examples of a source through several models, each with colours of its own."""
    maps: dict[str, list[str]] = {}
    for name, model in models.items():
        seen = encode_examples(model, source, COUNT)
        images = [example.image for example in seen.examples]
        laid = [model.to_grid(image, tokens) for image, tokens in zip(images, seen.tokens, strict=True)]
        maps[name] = [_png_uri(colours) for colours in pca_colours(laid)]
    return [
        Patches(example.name, as_uri(example.image), {name: some[place] for name, some in maps.items()})
        for place, example in enumerate(seen.examples)
    ]


def pca_colours(maps: Sequence[Tensor]) -> list[Tensor]:
    """Tokens of images where they stand [rows, columns, D] -> [rows, columns, 3] in 0..1: alike patches, alike colours.

    Red, green and blue are the first three principal components of all tokens together, each stretched over its range.
    A component's sign is arbitrary; its skewness is made positive, so that the result is always the same.
    """
    flat = widen(torch.cat([tokens.detach().flatten(0, 1) for tokens in maps]))
    flat = flat - flat.mean(0)
    axes = torch.linalg.eigh(flat.T @ flat)[1].flip(1)[:, :3]  # [D, 3], largest variance first
    scores = flat @ axes
    scores = scores * torch.where(scores.pow(3).mean(0) < 0, -1.0, 1.0)
    low, high = scores.quantile(EXTREMES, 0), scores.quantile(1 - EXTREMES, 0)
    colours = ((scores - low) / (high - low).clamp(min=1e-12)).clamp(0, 1).float()
    parts = colours.split([rows * columns for rows, columns, _ in (tokens.shape for tokens in maps)])
    return [part.view(*tokens.shape[:2], 3) for part, tokens in zip(parts, maps, strict=True)]


def _png_uri(colours: Tensor) -> str:
    """One patch, one square of colour: [rows, columns, 3] in 0..1 as a data URI."""
    file = io.BytesIO()
    colour_map(colours, SIDE // max(colours.shape[:2]) * max(colours.shape[:2])).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
