"""What the truth of an example is, for tasks that need classes: its label, and the masks of the things in it.

Folders: `label`, a name or {language: name}; `masks`, [{"label": name or {language: name}, "polygons": [[x1, y1, x2,
y2, ...], ...]}] in pixels of the stored image; `depth`, a PNG of 16 bits in millimetres, 0 where unknown (as NYUv2 is
handed on). Scenes: the drawings.
"""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from opensiglip.data.example import Example
from opensiglip.data.sources.images import MAX_PIXELS
from opensiglip.errors import UserError
from opensiglip.inference.subject import Subject

Names = Mapping[str, str]  # language -> name; a bare name is taken for English
PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Thing:
    """Something in an image: what it is, and which pixels show it."""

    names: Names
    mask: Tensor  # [h, w] bool


def key(names: Names) -> str:
    """What tells one class from another: its English name, else its first."""
    return names.get("en") or next(iter(names.values()))


def label(example: Example) -> Names | None:
    """The example's class: its `label`, or the drawing of a scene that shows one."""
    drawn = example.extras.get("drawings")
    if drawn is not None:
        return drawing_names()[drawn[0]] if len(drawn) == 1 else None
    return _names(example.extras.get("label"))


def things(example: Example) -> list[Thing]:
    """The masks of an example that `look` put into a frame."""
    masks, size = example.extras.get("masks"), example.image.shape[-2:]
    if not isinstance(masks, np.ndarray | list):
        return []
    if isinstance(masks, np.ndarray):  # of scenes
        names = [drawing_names()[code] for code in example.extras["drawings"]]
        shown = torch.from_numpy(masks)
    else:
        known = [(_names(one.get("label")), one.get("polygons")) for one in masks if isinstance(one, dict)]
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


@cache
def templates(language: str) -> tuple[str, ...]:
    """CLIP's 80 prompts in English; in other languages the bare name, as nobody has agreed on others."""
    if language != "en":
        return ("{}",)
    text = files(__package__).joinpath("clip_templates.txt").read_text(encoding="utf-8")
    return tuple(canonical(line, keep="{}") for line in text.splitlines())


def canonical(text: str, keep: str = "") -> str:
    """Lower-cased, "_" a space, ASCII punctuation dropped but for `keep`, blanks single.

    (big_vision evaluators/proj/image_text/prompt_engineering.py:94-112)
    """
    parts = text.replace("_", " ").split(keep) if keep else [text.replace("_", " ")]
    return " ".join(keep.join(part.translate(PUNCTUATION) for part in parts).lower().split())


def class_name(names: Names, language: str) -> str | None:
    """The name for prompts: the first of those between commas, canonical. None where the language has none."""
    said = names.get(language)
    return canonical(said, keep=",").split(",")[0].strip() if said else None


def class_embeddings(subject: Subject, names: Sequence[str], language: str) -> Tensor:
    """[C, D]: the mean of the unit embeddings of all prompts of a class, of unit length again.

    (big_vision evaluators/proj/image_text/discriminative_classifier.py:145-186)
    """
    prompts = templates(language)
    read = subject.read([prompt.replace("{}", name) for name in names for prompt in prompts])
    return F.normalize(read.unflatten(0, (len(names), len(prompts))).mean(1), dim=-1, eps=1e-8)


def _names(value: Any) -> Names | None:
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
