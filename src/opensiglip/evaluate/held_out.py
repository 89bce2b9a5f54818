"""What a run is judged by at its end: referring boxes and retrieval on held-out examples, beside blind baselines."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from opensiglip.data.boxes import BoxFormat
from opensiglip.data.captions import referring_prefix
from opensiglip.data.example import Box, BrokenExample, Example, Source
from opensiglip.data.fields import Frame
from opensiglip.data.text import TextPipeline
from opensiglip.decoding import BoxGrammar, greedy
from opensiglip.models.model import Model

BATCH = 64


@dataclass(frozen=True)
class Judged:
    """Held-out examples with their frames and image features, computed once for all measures."""

    examples: list[Example]  # image and boxes in the frame
    tokens: Tensor  # [E, N, D]
    pooled: Tensor | None  # [E, D]


@torch.no_grad()
def look(model: Model, source: Source, frame: Frame, count: int, autocast: Any) -> Judged:
    """Encode the first `count` readable examples of a held-out source, uncropped."""
    device = next(model.parameters()).device
    examples: list[Example] = []
    tokens: list[Tensor] = []
    pooled: list[Tensor] = []
    for some in _batches(readable(source, count), BATCH):
        framed = []
        for example in some:
            image, regions = frame.apply(example, None)
            framed.append(Example(image, example.captions, regions, example.name, example.extras))
        pixels = torch.stack([e.image for e in framed]).to(device).float() / 127.5 - 1
        with autocast():
            features = model.vision(pixels)
        examples += framed
        tokens.append(features.tokens.float())
        if features.pooled is not None:
            pooled.append(features.pooled.float())
    return Judged(examples, torch.cat(tokens), torch.cat(pooled) if pooled else None)


def readable(source: Source, count: int) -> Iterator[Example]:
    """The first `count` examples of a source that can be read."""
    found = 0
    for index in range(len(source)):
        if found == count:
            return
        try:
            yield source.example(index)
        except BrokenExample:
            continue
        found += 1


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union > 0 else 0.0


def referring(
    model: Model, judged: Judged, pipeline: TextPipeline, boxes: BoxFormat, constants: Sequence[Box], autocast: Any
) -> dict[str, Any]:
    """Referring expression comprehension: decode the box after "ARef: phrase :", count IoU >= 0.5.

    Single-box regions only, one phrase per region (the example's first language). Two blind baselines beside it: the
    best constant box, chosen among `constants` (training boxes, as shares of the image) on the held-out boxes
    themselves, so an upper bound; and the same model given another example's image. Intervals: bootstrap over images.
    """
    asked = [
        (place, region)
        for place, example in enumerate(judged.examples)
        for region in example.regions
        if region.n_boxes == 1 and region.phrases
    ]
    decoder = model.decoder
    if not asked or decoder is None:
        return {}
    grammar = BoxGrammar(pipeline, boxes)
    prefixes = [referring_prefix(pipeline, next(iter(region.phrases.values()))) for _, region in asked]
    side = judged.examples[0].image.shape[-1]
    owners = [place for place, _ in asked]
    truths = [region.bbox for _, region in asked]

    def found(places: Sequence[int]) -> list[float]:
        overlaps = []
        for at in range(0, len(asked), 4 * BATCH):
            here = slice(at, at + 4 * BATCH)
            with autocast():
                answers = greedy(decoder, judged.tokens[torch.tensor(places[here])], prefixes[here], pipeline, grammar)
            for answer, truth in zip(answers, truths[here], strict=True):
                box = boxes.read(pipeline.text(answer), side, side)
                overlaps.append(overlap(box, truth) if box else 0.0)
        return overlaps

    seen = found(owners)
    shift = max(1, len(judged.examples) // 2)
    blind = found([(place + shift) % len(judged.examples) for place in owners])
    candidates = [[overlap((a * side, b * side, c * side, d * side), t) for t in truths] for a, b, c, d in constants]
    constant = max(
        candidates, key=lambda ious: (np.mean(np.array(ious) >= 0.5), np.mean(ious)), default=[0.0] * len(asked)
    )
    return {
        "phrases": len(asked),
        "images": len(set(owners)),
        **measured("accuracy", [iou >= 0.5 for iou in seen], owners),
        **measured("mean_iou", seen, owners),
        **measured("accuracy_constant_box", [iou >= 0.5 for iou in constant], owners),
        **measured("mean_iou_constant_box", constant, owners),
        **measured("accuracy_shuffled_images", [iou >= 0.5 for iou in blind], owners),
        **measured("mean_iou_shuffled_images", blind, owners),
    }


@torch.no_grad()
def retrieval(model: Model, judged: Judged, pipeline: TextPipeline, autocast: Any) -> dict[str, Any]:
    """R@1 between all images and all their captions (first language); any of an image's captions counts."""
    if model.text is None or judged.pooled is None:
        return {}
    device = judged.pooled.device
    texts, owners = [], []
    for place, example in enumerate(judged.examples):
        first = example.captions[0].language if example.captions else ""
        for caption in example.captions:
            if caption.language == first:
                texts.append(pipeline.fixed(caption.text))
                owners.append(place)
    if not texts:
        return {}
    embedded = []
    for at in range(0, len(texts), 4 * BATCH):
        with autocast():
            pooled = model.text(torch.from_numpy(np.stack(texts[at : at + 4 * BATCH])).to(device)).pooled
        assert pooled is not None
        embedded.append(pooled.float())
    scores = F.normalize(judged.pooled, dim=-1) @ F.normalize(torch.cat(embedded), dim=-1).T  # [E, T]
    owner = torch.tensor(owners, device=device)
    to_text = (owner[scores.argmax(1)] == torch.arange(len(scores), device=device)).tolist()
    to_image = (scores.argmax(0) == owner).tolist()
    with_text = sorted(set(owners))
    return {
        "images": len(with_text),
        "captions": len(texts),
        **measured("image_to_text_r1", [to_text[place] for place in with_text], with_text),
        **measured("text_to_image_r1", to_image, owners),
        "chance_r1": 1 / len(scores),
    }


def measured(name: str, values: Sequence[float | bool], clusters: Sequence[int], draws: int = 1000) -> dict[str, Any]:
    """{name: mean, name_ci95: [low, high]}: percentile bootstrap over clusters (images), seed 0."""
    scores, group = np.asarray(values, float), np.unique(clusters, return_inverse=True)[1]
    totals, counts = np.bincount(group, scores), np.bincount(group)
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(totals), size=(draws, len(totals)))
    means = totals[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return {name: float(scores.mean()), f"{name}_ci95": [float(low), float(high)]}


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


def _batches(examples: Iterator[Example], size: int) -> Iterator[list[Example]]:
    some: list[Example] = []
    for example in examples:
        some.append(example)
        if len(some) == size:
            yield some
            some = []
    if some:
        yield some
