"""SigLIP taught by a reference in both ways, so that every test over recipes looks at them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from opensiglip.data.fields.curation import TEACHER, named_rows
from opensiglip.data.fields.field import Field, Visit
from opensiglip.data.text import TextPipeline
from opensiglip.objectives.distil import Distil
from opensiglip.recipes import Recipe, siglip
from opensiglip.types import Batch


class Rows(Field):
    """In the place of a reference's rows: drawn ones, of which Z is 20 for a pair and about -20 for others."""

    def draw(self, visit: Visit, rng: np.random.Generator, pipeline: TextPipeline) -> np.ndarray:
        row = rng.standard_normal(16)
        row *= np.sqrt(40 / (row @ row))
        return np.stack([np.append(row, 1), np.append(row, -20)]).astype(np.float32)

    def collate(self, drawn: Sequence[np.ndarray], pipeline: TextPipeline) -> Batch:
        images, texts = torch.from_numpy(np.stack(drawn)).unbind(1)
        return named_rows(images.contiguous(), texts.contiguous(), [TEACHER])


def distil(
    *,
    size: str = "B/16",
    resolution: int | None = None,
    length: int = 64,
    crop_area: float = 1.0,
    logit_bias: str = "-10",
) -> Recipe:
    """SigLIP with the softmax's and the sigmoid's distillation.

    Args:
        size: of the networks.
        resolution: pixels of a side.
        length: tokens per text.
        crop_area: smallest share of the image that a random crop keeps.
        logit_bias: where the sigmoid's bias starts.
    """
    plain = siglip(size=size, resolution=resolution, length=length, crop_area=crop_area, logit_bias=logit_bias)
    other = Distil("sigmoid", weight=0.5)
    other.name = "distil_sigmoid"
    return replace(plain, fields=[*plain.fields, Rows()], objectives=[*plain.objectives, Distil(weight=2.0), other])
