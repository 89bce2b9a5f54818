"""Intersection over union of maps of classes."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from opensiglip.evaluation.metrics.intervals import bootstrap


def class_areas(predicted: Tensor, target: Tensor, classes: int, ignored: int = -1) -> Tensor:
    """[3, C] int64: pixels by class where two maps agree, of the first, of the second; `ignored` is left out."""
    kept = target != ignored
    predicted, target = predicted[kept], target[kept]
    counts = (some.bincount(minlength=classes) for some in (target[predicted == target], predicted, target))
    return torch.stack(list(counts))


def mean_iou(name: str, areas: Tensor) -> dict[str, Any]:
    """mIoU with its interval, from the areas [E, 3, C] of intersection, prediction and target by image and class.

    Summed over images first, then intersection over union, then the mean over classes that are predicted or true
    anywhere. A draw of the bootstrap that has no image of one of these classes keeps the class's IoU: were it left out,
    the draws would be means over fewer classes, and lie above the point where the model misses them.
    """
    columns = areas.numpy().astype(float)
    shared, either = _intersection_and_union(columns.sum(0))
    seen = either > 0
    point = shared[seen] / either[seen]

    def statistic(sums: np.ndarray) -> np.ndarray:  # [..., 3 * C] -> [...]
        shared, either = _intersection_and_union(sums.reshape(*sums.shape[:-1], *columns.shape[1:]))
        iou = np.where(either[..., seen] > 0, shared[..., seen] / np.maximum(either[..., seen], 1), point)
        return iou.mean(-1) if seen.any() else np.zeros(iou.shape[:-1])

    return bootstrap(columns.reshape(len(columns), -1), statistic).as_metrics(name)


def _intersection_and_union(areas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[..., 3, C] -> [..., C] and [..., C]."""
    shared, predicted, target = np.moveaxis(areas, -2, 0)
    return shared, predicted + target - shared
