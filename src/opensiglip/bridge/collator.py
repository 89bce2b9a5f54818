"""Rows of a dataset to the batch that `SiglipForPreTraining` reads."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as transform

from opensiglip.data.boxes import BoxFormat
from opensiglip.data.example import Caption, Example, Region
from opensiglip.data.fields.captions import Captions
from opensiglip.data.fields.field import Field, Images, Texts, Visit
from opensiglip.data.fields.frame import Frame
from opensiglip.data.fields.views import PatchMask, Views
from opensiglip.data.text import TextPipeline
from opensiglip.types import Batch


class PreTrainingCollator:
    """A `data_collator`: draws captions, regions, modes, views and masks from torch's generator (Trainer's seed).

    A row has `image` (PIL or [3, H, W] uint8); `caption`, a text, or `captions`, several; and if there are any
    `regions`, dicts of `bbox` (x1, y1, x2, y2 in pixels) and `phrase`. `Example`s are accepted, too.
    """

    def __init__(
        self,
        pipeline: TextPipeline,
        *,
        resolution: int,
        patch_size: int,
        parallel: float = 0.5,
        boxes: str = "y1 x1 y2 x2",
        regions: int = 1,
        start: float = 0.8,
    ) -> None:
        """`regions`: number per image and step. `start`: as the model's; views are made shortly before it."""
        tasks, written = ("cap", "aref", "gcap"), BoxFormat.parse(boxes)
        self.pipeline, self.frame = pipeline, Frame(resolution)
        self.fields: list[Field] = [
            Images(self.frame),
            Texts(),
            Captions(tasks, parallel=parallel, boxes=written, regions=regions),
            Views(resolution, patch_size, start=start),
            PatchMask(resolution, patch_size, ratio=0.5, start=start),
        ]
        self.progress = torch.zeros(()).share_memory_()  # seen by loader processes; the callback moves it on
        self.ahead = 0.0  # what share of training loaders may be ahead of it

    def __call__(self, rows: Sequence[Any]) -> Batch:
        fields = [field for field in self.fields if field.drawn_at(float(self.progress) + self.ahead)]
        drawn = []
        for row in rows:
            rng = np.random.default_rng(int(torch.randint(2**62, ())))
            example = row if isinstance(row, Example) else _example(row)
            visit = Visit.draw(example, self.frame, rng, None)
            drawn.append([field.draw(visit, rng, self.pipeline) for field in fields])
        batch: Batch = {}
        for index, field in enumerate(fields):
            batch |= field.collate([some[index] for some in drawn], self.pipeline)
        return batch


def _example(row: dict[str, Any]) -> Example:
    image = row["image"]
    if isinstance(image, Image.Image):
        image = transform.pil_to_tensor(image.convert("RGB"))
    captions = row.get("captions") or ([row["caption"]] if row.get("caption") else [])
    regions = []
    for region in row.get("regions") or []:
        x1, y1, x2, y2 = map(float, region["bbox"])
        regions.append(Region((x1, y1, x2, y2), {"en": region["phrase"]}))
    return Example(image, tuple(Caption(text) for text in captions), tuple(regions))
