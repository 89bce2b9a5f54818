"""Targets that are no text: the class of an example, the masks of the things in it, and its depth.

Folders: `label`, a name or {language: name}; `masks`, [{"label": name or {language: name}, "polygons": [[x1, y1, x2,
y2, ...], ...]}] in pixels of the stored image; `depth`, a PNG of 16 bits in millimetres, 0 where unknown (as NYUv2 is
handed on). Scenes: the drawings.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from opensiglip.data.example import Example
from opensiglip.data.sources.images import MAX_PIXELS
from opensiglip.errors import UserError
from opensiglip.evaluation.class_names import Names


@dataclass(frozen=True)
class Thing:
    """Something in an image: what it is, and which pixels show it."""

    names: Names
    mask: Tensor  # [h, w] bool


def label(example: Example) -> Names | None:
    """The example's class: its `label`, or the drawing of a scene that shows one."""
    drawn = example.extras.get("drawings")
    if drawn is not None:
        return drawing_names()[drawn[0]] if len(drawn) == 1 else None
    return class_names(example.extras.get("label"))


def things(example: Example) -> list[Thing]:
    """The masks of an example that `encode_examples` put into a frame."""
    masks, size = example.extras.get("masks"), example.image.shape[-2:]
    if not isinstance(masks, np.ndarray | list):
        return []
    if isinstance(masks, np.ndarray):  # of scenes
        names = [drawing_names()[code] for code in example.extras["drawings"]]
        shown = torch.from_numpy(masks)
    else:
        known = [(class_names(one.get("label")), one.get("polygons")) for one in masks if isinstance(one, dict)]
        drawn = [
            (name, _paint(polygons, example.extras["size"]))
            for name, polygons in known
            if name and isinstance(polygons, list)
        ]
        if not drawn:
            return []
        names, shown = [name for name, _ in drawn], torch.stack([mask for _, mask in drawn])
    if shown.shape[-2:] != size:
        shown = F.interpolate(shown[None].float(), size=size, mode="nearest-exact")[0] > 0.5
    return [Thing(name, mask) for name, mask in zip(names, shown, strict=True)]


def depth(example: Example) -> Tensor | None:
    """[h, w] float32 metres, NaN where unknown; None where the example has no depth. Raises UserError if unreadable."""
    path = example.extras.get("depth")
    if path is None:
        return None
    try:
        with Image.open(path, formats=("PNG",)) as image:
            if image.mode not in ("I;16", "I") or image.width * image.height > MAX_PIXELS:
                raise ValueError("not one channel of 16 bits, or too large")
            millimetres = torch.from_numpy(np.array(image).astype(np.float32))
    except (OSError, ValueError) as error:
        raise UserError(f"the depth map {path} can't be read ({error}); give a PNG of 16 bits.") from error
    near = F.interpolate(millimetres[None, None], size=example.image.shape[-2:], mode="nearest-exact")[0, 0]
    return near.masked_fill(near == 0, torch.nan) / 1000


@cache
def drawing_names() -> Mapping[str, Names]:
    """code point -> names, of every drawing."""
    from opensiglip.data.scenes.drawings import drawings  # folders do without the drawings

    return {drawing.code: drawing.names for part in drawings() for drawing in part}


def class_names(value: Any) -> Names | None:
    """The names of a label as a row has it: a text, a number, or {language: name}; None where it is none of these."""
    if isinstance(value, dict):
        return {str(code): str(name) for code, name in value.items() if str(name).strip()} or None
    if isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip():
        return {"en": str(value)}
    return None


def _paint(polygons: list[Any], size: tuple[int, int]) -> Tensor:
    canvas = Image.new("1", size)
    for polygon in polygons:
        numbers = isinstance(polygon, list) and all(isinstance(value, int | float) for value in polygon)
        if numbers and len(polygon) >= 6 and len(polygon) % 2 == 0:
            ImageDraw.Draw(canvas).polygon([float(value) for value in polygon], fill=1)
    return torch.from_numpy(np.array(canvas))
