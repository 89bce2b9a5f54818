"""Regions of an image and the phrases that name them, for the text tower."""

from collections.abc import Sequence

import numpy as np
import torch

from opensiglip.data.example import Box, Region
from opensiglip.data.fields.captions import pick
from opensiglip.data.fields.field import Field, Visit, group_id
from opensiglip.data.tasks.task import in_language, language_of
from opensiglip.data.text import TextPipeline
from opensiglip.types import Batch

Drawn = list[tuple[Box, np.ndarray]]  # a box in pixels of the visit's image, and its phrase as the batch holds it


class RegionTexts(Field):
    """`count` of an image's boxes and a phrase of each, drawn anew each visit; padding where it has fewer.

    region_box [B, K, 4] float32, x1, y1, x2, y2 in pixels of the image; region_text [B, K, L] int64; has_region [B, K]
    bool; region_phrase [B, K] int64, equal where texts are. Phrases that name one box only, in the caption's language
    if they have it. Of several phrases of one box, one: none is a negative of what the other names.
    """

    def __init__(self, count: int = 4) -> None:
        self.count = count

    def draw(self, visit: Visit, rng: np.random.Generator, pipeline: TextPipeline) -> Drawn:
        # The same number of draws for every example, so that a visit's choices do not hang on its content.
        which, phrase = rng.random((2, self.count)).tolist()
        named: dict[Box, list[Region]] = {}
        for region in visit.regions:
            if region.is_referable:
                named.setdefault(region.bbox, []).append(region)
        drawn: Drawn = []
        for (box, regions), choice in zip(pick(list(named.items()), which), phrase, strict=False):
            texts = regions[int(choice * len(regions))].phrases
            drawn.append((box, pipeline.fixed(in_language(texts, language_of(visit)))))
        return drawn

    def collate(self, drawn: Sequence[Drawn], pipeline: TextPipeline) -> Batch:
        shape = len(drawn), self.count
        boxes, has = np.zeros((*shape, 4), np.float32), np.zeros(shape, bool)
        texts = np.broadcast_to(pipeline.fixed(""), (*shape, pipeline.policy.length)).copy()
        phrases = np.zeros(shape, np.int64)
        for row, regions in enumerate(drawn):
            for place, (box, ids) in enumerate(regions):
                boxes[row, place], texts[row, place], has[row, place] = box, ids, True
                phrases[row, place] = group_id(str(ids.tolist())) or 0  # None is of no name
        fields = {"region_box": boxes, "region_text": texts, "region_phrase": phrases, "has_region": has}
        return {name: torch.from_numpy(field) for name, field in fields.items()}
