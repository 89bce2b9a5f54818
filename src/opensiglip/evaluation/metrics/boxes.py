"""Overlap of boxes and of outlines, and average precision of detection."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

from opensiglip.data.example import Box
from opensiglip.data.tasks import Polygon
from opensiglip.data.tasks.outline import fill
from opensiglip.errors import UserError

FOUND = 0.5  # a box is found from this IoU on    (referring expression comprehension)

Detections = Sequence[tuple[str, Box]]  # names and boxes of one image


def box_iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union > 0 else 0.0


def box_accuracy(predicted: Box | None, target: Box) -> float:
    """1 if the box overlaps the target by half of their union or more, else 0."""
    return float(predicted is not None and box_iou(predicted, target) >= FOUND)


def mask_iou(predicted: Polygon | None, target: Polygon, width: int, height: int) -> float:
    """Intersection over union of two outlines' pixels."""
    if predicted is None:
        return 0.0
    a, b = (fill(polygon.points, width, height) for polygon in (predicted, target))
    return float((a & b).sum() / max(1, (a | b).sum()))


def detection_ap(predicted: Sequence[Detections], targets: Sequence[Detections]) -> dict[str, float]:
    """COCO's AP over IoU 0.50:0.95, and at 0.50, by pycocotools; a name is a category, compared as it stands.

    The texts carry no scores, so all boxes have the same, in the order they were written.
    """
    try:
        from pycocotools.coco import COCO  # type: ignore[import-untyped]
        from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped]
    except ImportError as error:
        raise UserError('detection is evaluated with pycocotools: pip install "opensiglip[eval]".') from error
    names = sorted({name for some in targets for name, _ in some})
    category = {name: number for number, name in enumerate(names, 1)}

    def rows(images: Sequence[Detections]) -> list[dict[str, Any]]:
        return [
            {"image_id": image, "category_id": category[name], "bbox": [x1, y1, x2 - x1, y2 - y1]}
            for image, some in enumerate(images)
            for name, (x1, y1, x2, y2) in some
            if name in category
        ]

    annotations = [
        row | {"id": number, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
        for number, row in enumerate(rows(targets), 1)
    ]
    scored = [row | {"score": 1.0} for row in rows(predicted)]
    if not annotations or not scored:
        return {"ap": 0.0, "ap50": 0.0}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints how long everything took
        coco = COCO()
        coco.dataset = {
            "images": [{"id": image} for image in range(len(targets))],
            "categories": [{"id": number, "name": name} for name, number in category.items()],
            "annotations": annotations,
        }
        coco.createIndex()
        evaluator = COCOeval(coco, coco.loadRes(scored), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return {"ap": float(evaluator.stats[0]), "ap50": float(evaluator.stats[1])}
