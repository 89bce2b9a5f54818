"""Grounding: does the decoder find what a phrase names?"""

from collections.abc import Sequence

import numpy as np
import torch

from opensiglip.data.example import Box, Region, Source
from opensiglip.data.fields.captions import referring_prefix
from opensiglip.data.fields.frame import Geometry
from opensiglip.evaluation.benchmark import Context, Findings, Impossible, Picture, some_of_both
from opensiglip.evaluation.encoded import BATCH, Judged, readable
from opensiglip.evaluation.metrics.scores import measured, overlap
from opensiglip.inference.box_grammar import BoxGrammar
from opensiglip.inference.generate import greedy
from opensiglip.inference.subject import Subject


def grounding(subject: Subject, judged: Judged, context: Context) -> Findings:
    """Referring expression comprehension: decode the box after "ARef: phrase :", count IoU >= 0.5.

    As LocCa and SigLIP 2 (Sec. 3.4.1) report it, with the mean IoU beside it. Single-box regions only, one phrase per
    region (the example's first language); decoding is constrained to boxes, and what is none all the same (no room was
    left for it) counts as wrong. Two blind baselines: the best constant box, chosen among training boxes (as shares of
    the image) on the held-out boxes themselves, so an upper bound; and the same model given another example's image.
    Intervals: bootstrap over images.
    """
    if subject.decoder is None or subject.boxes is None or "aref" not in subject.tasks:
        raise Impossible("the model has no decoder trained to write boxes")
    asked = single_regions(judged)
    if not asked:
        raise Impossible("no example has a region with one box")
    owners = [place for place, _ in asked]
    truths = [region.bbox for _, region in asked]
    phrases = [next(iter(region.phrases.values())) for _, region in asked]
    shift = max(1, len(judged.examples) // 2)
    elsewhere = [(place + shift) % len(judged.examples) for place in owners]
    boxes = find(subject, judged, owners, phrases, context)
    seen = [overlap(box, truth) if box else 0.0 for box, truth in zip(boxes, truths, strict=True)]
    others = find(subject, judged, elsewhere, phrases, context)
    blind = [overlap(box, truth) if box else 0.0 for box, truth in zip(others, truths, strict=True)]
    constants = constant_boxes(context.training, subject.frame) if context.training is not None else []
    sizes = [judged.size(place) for place in owners]
    candidates = [
        [overlap((a * w, b * h, c * w, d * h), t) for (w, h), t in zip(sizes, truths, strict=True)]
        for a, b, c, d in constants
    ]
    constant = max(
        candidates, key=lambda ious: (np.mean(np.array(ious) >= 0.5), np.mean(ious)), default=[0.0] * len(asked)
    )
    pictures = [
        Picture(
            judged.examples[owners[one]].image,
            seen[one] >= 0.5,
            phrases[one],
            (f"IoU {seen[one]:.2f}",),
            true_boxes=(truths[one],),
            found_boxes=() if (box := boxes[one]) is None else (box,),
        )
        for one in some_of_both([iou >= 0.5 for iou in seen])
    ]
    return Findings(
        {
            "phrases": len(asked),
            "images": len(set(owners)),
            "invalid": sum(box is None for box in boxes),
            **measured("accuracy", [iou >= 0.5 for iou in seen], owners),
            **measured("mean_iou", seen, owners),
            **measured("accuracy_constant_box", [iou >= 0.5 for iou in constant], owners),
            **measured("mean_iou_constant_box", constant, owners),
            **measured("accuracy_shuffled_images", [iou >= 0.5 for iou in blind], owners),
            **measured("mean_iou_shuffled_images", blind, owners),
        },
        pictures,
    )


def single_regions(judged: Judged) -> list[tuple[int, Region]]:
    """Each region that can be asked for, with its example's place: one box, and a phrase that names it."""
    return [
        (place, region)
        for place, example in enumerate(judged.examples)
        for region in example.regions
        if region.n_boxes == 1 and region.phrases
    ]


def find(
    subject: Subject, judged: Judged, places: Sequence[int], phrases: Sequence[str], context: Context
) -> list[Box | None]:
    """The box of each phrase in the example at its place, in pixels of the frame; None where the answer is no box."""
    decoder, pipeline, boxes = subject.decoder, subject.pipeline, subject.boxes
    assert decoder is not None and pipeline is not None and boxes is not None
    grammar = BoxGrammar(pipeline, boxes)
    found: list[Box | None] = []
    for at in context.bar(range(0, len(phrases), 4 * BATCH), "boxes"):
        here = places[at : at + 4 * BATCH]
        prefixes = [referring_prefix(pipeline, phrase) for phrase in phrases[at : at + 4 * BATCH]]
        images, owners = torch.tensor(here, device=judged.tokens.device).unique(return_inverse=True)
        with subject.autocast():
            answers = greedy(
                decoder,
                judged.tokens[images],
                prefixes,
                pipeline,
                grammar,
                owners=owners.tolist(),
                valid=judged.visible(images),
            )
        found += [
            boxes.read(pipeline.text(answer), *judged.size(place)) for place, answer in zip(here, answers, strict=True)
        ]
    return found


def constant_boxes(source: Source, frame: Geometry, count: int = 256) -> list[Box]:
    """Candidates for the best constant box, as shares of the image: boxes of training examples, and their mean."""
    found: list[Box] = []
    for example in readable(source, count):
        image, regions = frame.apply(example, None)
        height, width = image.shape[-2:]
        found += [(a / width, b / height, c / width, d / height) for a, b, c, d in (one.bbox for one in regions)]
    found = found[:count]
    if not found:
        return []
    return [tuple(np.mean(found, axis=0)), *found]
