"""From a detector's boxes and scores to an image's regions: one query a box, few boxes an object."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision import ops

from opensiglip.apps.annotate.queries import Query
from opensiglip.data.example import Box, Region

# OWL-ST multiplies the scores of its curated categories by this where they meet n-grams (A.2).
CATEGORY_WEIGHT = 0.3
SMALLEST = 1.0  # pixels of a box's sides


@dataclass(frozen=True)
class Limits:
    """What is kept of what a detector finds."""

    threshold: float = 0.3  # smallest score (LocCa; OWL-ST, A.3)
    overlap: float = 0.5  # of two boxes that overlap more, the better one stays (ours)
    most: int = 20  # boxes of an image (ours)


@dataclass(frozen=True)
class PseudoBox:
    """A box that a detector found, the query it answers best, and how well."""

    bbox: Box  # pixels of the image
    query: Query
    score: float


def choose(
    boxes: Tensor,
    scores: Tensor,
    asked: Sequence[Query],
    size: tuple[int, int],
    given: Sequence[Region],
    limits: Limits,
) -> list[PseudoBox]:
    """The boxes to keep, best first.

    boxes [N, 4] x1, y1, x2, y2 in pixels of an image of `size` (height, width); scores [N, Q] in 0..1 of the Q queries
    `asked`. Of the queries that reach the threshold at a box the best is taken, categories counting CATEGORY_WEIGHT;
    then overlapping boxes are thinned, whatever their queries. A box over one that the image came with is left out:
    what is given is better than what is guessed.
    """
    if not asked or not len(boxes):
        return []
    boxes, scores = boxes.float().cpu(), scores.float().cpu()
    weights = torch.tensor([CATEGORY_WEIGHT if query.source == "category" else 1.0 for query in asked])
    best = (scores * weights).masked_fill(scores < limits.threshold, -1).argmax(1)  # [N]
    found = scores.gather(1, best[:, None])[:, 0]
    boxes = ops.clip_boxes_to_image(boxes, size)
    kept = found >= limits.threshold
    kept[kept.clone()] = (boxes[kept, 2:] - boxes[kept, :2] >= SMALLEST).all(1)
    if given:
        kept &= (ops.box_iou(boxes, torch.tensor([region.bbox for region in given])) <= limits.overlap).all(1)
    places = kept.nonzero()[:, 0]
    places = places[ops.nms(boxes[places], found[places], limits.overlap)[: limits.most]]
    kept_boxes, kept_scores = boxes[places].tolist(), found[places].tolist()
    return [
        PseudoBox((round(x1, 2), round(y1, 2), round(x2, 2), round(y2, 2)), asked[query], round(score, 4))
        for (x1, y1, x2, y2), query, score in zip(kept_boxes, best[places].tolist(), kept_scores, strict=True)
    ]


def as_columns(found: Sequence[PseudoBox], given: Sequence[Region]) -> list[dict[str, object]]:
    """The regions of a row of `metadata.jsonl`: those given, then those found with score and source.

    A phrase that several boxes answer names them all (`n_boxes`), and is not used for referring.
    """
    counts = Counter(box.query.text for box in found)
    return [{"bbox": list(region.bbox), "phrases": region.phrases, "n_boxes": region.n_boxes} for region in given] + [
        {
            "bbox": list(box.bbox),
            "phrases": {"en": box.query.text},
            "n_boxes": counts[box.query.text],
            "score": box.score,
            "source": box.query.source,
        }
        for box in found
    ]
