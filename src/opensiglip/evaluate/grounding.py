"""Grounding: does the decoder find what a phrase names?"""

from collections.abc import Sequence

import numpy as np
import torch

from opensiglip.data.captions import referring_prefix
from opensiglip.data.example import Box, Source
from opensiglip.data.fields import Frame
from opensiglip.decoding import BoxGrammar, greedy
from opensiglip.evaluate.base import Context, Findings, Impossible
from opensiglip.evaluate.judged import BATCH, Judged, readable
from opensiglip.evaluate.metrics import measured, overlap
from opensiglip.evaluate.subject import Subject


def grounding(subject: Subject, judged: Judged, context: Context) -> Findings:
    """Referring expression comprehension: decode the box after "ARef: phrase :", count IoU >= 0.5.

    Single-box regions only, one phrase per region (the example's first language). Two blind baselines beside it: the
    best constant box, chosen among training boxes (as shares of the image) on the held-out boxes themselves, so an
    upper bound; and the same model given another example's image. Intervals: bootstrap over images.
    """
    decoder, pipeline, boxes = subject.decoder, subject.pipeline, subject.boxes
    if decoder is None or pipeline is None or boxes is None or "aref" not in subject.tasks:
        raise Impossible("the model has no decoder trained to write boxes")
    asked = [
        (place, region)
        for place, example in enumerate(judged.examples)
        for region in example.regions
        if region.n_boxes == 1 and region.phrases
    ]
    if not asked:
        raise Impossible("no example has a region with one box")
    grammar = BoxGrammar(pipeline, boxes)
    prefixes = [referring_prefix(pipeline, next(iter(region.phrases.values()))) for _, region in asked]
    side = subject.frame.resolution
    owners = [place for place, _ in asked]
    truths = [region.bbox for _, region in asked]

    def found(places: Sequence[int]) -> list[float]:
        overlaps = []
        for at in context.bar(range(0, len(asked), 4 * BATCH), "boxes"):
            here = slice(at, at + 4 * BATCH)
            with subject.autocast():
                answers = greedy(decoder, judged.tokens[torch.tensor(places[here])], prefixes[here], pipeline, grammar)
            for answer, truth in zip(answers, truths[here], strict=True):
                box = boxes.read(pipeline.text(answer), side, side)
                overlaps.append(overlap(box, truth) if box else 0.0)
        return overlaps

    seen = found(owners)
    shift = max(1, len(judged.examples) // 2)
    blind = found([(place + shift) % len(judged.examples) for place in owners])
    constants = constant_boxes(context.training, subject.frame) if context.training is not None else []
    candidates = [[overlap((a * side, b * side, c * side, d * side), t) for t in truths] for a, b, c, d in constants]
    constant = max(
        candidates, key=lambda ious: (np.mean(np.array(ious) >= 0.5), np.mean(ious)), default=[0.0] * len(asked)
    )
    return Findings(
        {
            "phrases": len(asked),
            "images": len(set(owners)),
            **measured("accuracy", [iou >= 0.5 for iou in seen], owners),
            **measured("mean_iou", seen, owners),
            **measured("accuracy_constant_box", [iou >= 0.5 for iou in constant], owners),
            **measured("mean_iou_constant_box", constant, owners),
            **measured("accuracy_shuffled_images", [iou >= 0.5 for iou in blind], owners),
            **measured("mean_iou_shuffled_images", blind, owners),
        }
    )


def constant_boxes(source: Source, frame: Frame, count: int = 256) -> list[Box]:
    """Candidates for the best constant box, as shares of the image: boxes of training examples, and their mean."""
    found = [
        tuple(value / frame.resolution for value in region.bbox)
        for example in readable(source, count)
        for region in frame.apply(example, None)[1]
    ][:count]
    if not found:
        return []
    return [tuple(np.mean(found, axis=0)), *found]
