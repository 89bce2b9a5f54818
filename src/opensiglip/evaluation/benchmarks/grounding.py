"""Grounding: does the decoder find what a phrase names?"""

from collections.abc import Sequence

import numpy as np

from opensiglip.data.example import Box, Source
from opensiglip.data.fields.frame import Geometry
from opensiglip.evaluation.benchmark import BenchmarkResult, Context, NotApplicable, Sample, hits_and_misses
from opensiglip.evaluation.encode import BATCH, EncodedExamples, readable_examples
from opensiglip.evaluation.metrics.boxes import FOUND, box_iou
from opensiglip.evaluation.metrics.intervals import mean_with_interval
from opensiglip.inference.predictor import Predictor


def grounding(model: Predictor, examples: EncodedExamples, context: Context) -> BenchmarkResult:
    """Referring expression comprehension: decode the box after "ARef: phrase :", count IoU >= 0.5.

    As LocCa and SigLIP 2 (Sec. 3.4.1) report it, with the mean IoU beside it. Single-box regions only, one phrase per
    region (the example's first language); decoding is constrained to boxes, and what is none all the same (no room was
    left for it) counts as wrong. Two blind baselines: the best constant box, chosen among training boxes (as shares of
    the image) on the held-out boxes themselves, so an upper bound; and the same model given another example's image.
    Intervals: bootstrap over images.
    """
    if not model.has_decoder or model.boxes is None or "aref" not in model.tasks:
        raise NotApplicable("the model has no decoder trained to write boxes")
    asked = examples.referable_regions
    if not asked:
        raise NotApplicable("no example has a region with one box")
    owners = [place for place, _ in asked]
    targets = [region.bbox for _, region in asked]
    phrases = [next(iter(region.phrases.values())) for _, region in asked]
    shift = max(1, len(examples.examples) // 2)
    elsewhere = [(place + shift) % len(examples.examples) for place in owners]
    boxes = locate(model, examples, owners, phrases, context)
    ious = _ious(boxes, targets)
    constants = constant_boxes(context.training, model.frame) if context.training is not None else []
    sizes = [examples.size(place) for place in owners]
    candidates = [
        [box_iou((a * w, b * h, c * w, d * h), target) for (w, h), target in zip(sizes, targets, strict=True)]
        for a, b, c, d in constants
    ]
    constant = max(
        candidates, key=lambda ious: (np.mean(np.array(ious) >= FOUND), np.mean(ious)), default=[0.0] * len(asked)
    )
    shuffled = _ious(locate(model, examples, elsewhere, phrases, context), targets)
    metrics = {
        "phrases": len(asked),
        "images": len(set(owners)),
        "invalid": sum(box is None for box in boxes),
    }
    for suffix, some in (("", ious), ("_constant_box", constant), ("_shuffled_images", shuffled)):
        metrics |= mean_with_interval(f"accuracy{suffix}", [iou >= FOUND for iou in some], owners)
        metrics |= mean_with_interval(f"mean_iou{suffix}", some, owners)
    return BenchmarkResult(
        metrics,
        [
            Sample(
                examples.examples[owners[one]].image,
                ious[one] >= FOUND,
                phrases[one],
                (f"IoU {ious[one]:.2f}",),
                target_boxes=(targets[one],),
                predicted_boxes=() if (box := boxes[one]) is None else (box,),
            )
            for one in hits_and_misses([iou >= FOUND for iou in ious])
        ],
    )


def locate(
    model: Predictor, examples: EncodedExamples, places: Sequence[int], phrases: Sequence[str], context: Context
) -> list[Box | None]:
    """The box of each phrase in the example at its place, in pixels of the frame; None where the answer is no box."""
    pipeline, boxes = model.pipeline, model.boxes
    assert pipeline is not None and boxes is not None
    found: list[Box | None] = []
    for at in context.progress(range(0, len(phrases), 4 * BATCH), "boxes"):
        here = places[at : at + 4 * BATCH]
        prompts = [model.locate_prompt(phrase) for phrase in phrases[at : at + 4 * BATCH]]
        answers = [ids for ids, _ in model.write_boxes(examples.features, prompts, images=here)]
        found += [
            boxes.read(pipeline.text(ids), *examples.size(place)) for place, ids in zip(here, answers, strict=True)
        ]
    return found


def constant_boxes(source: Source, frame: Geometry, count: int = 256) -> list[Box]:
    """Candidates for the best constant box, as shares of the image: boxes of training examples, and their mean."""
    found: list[Box] = []
    for example in readable_examples(source, count):
        image, regions = frame.apply(example, None)
        height, width = image.shape[-2:]
        found += [(a / width, b / height, c / width, d / height) for a, b, c, d in (one.bbox for one in regions)]
    found = found[:count]
    if not found:
        return []
    return [tuple(np.mean(found, axis=0)), *found]


def _ious(boxes: Sequence[Box | None], targets: Sequence[Box]) -> list[float]:
    return [box_iou(box, target) if box else 0.0 for box, target in zip(boxes, targets, strict=True)]
