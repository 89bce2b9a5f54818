"""Open vocabulary without training: where in an image is what a text names, by similarity of patches and texts?"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from opensiglip.data.example import Box
from opensiglip.evaluation.benchmark import BenchmarkResult, Context, NotApplicable, Sample, hits_and_misses
from opensiglip.evaluation.benchmarks.segmentation_probe import SHOWN, segmentation_sample
from opensiglip.evaluation.class_names import class_embeddings, class_name, key, unusable_names
from opensiglip.evaluation.encode import BATCH, EncodedExamples
from opensiglip.evaluation.labels import things
from opensiglip.evaluation.metrics.intervals import mean_with_interval
from opensiglip.evaluation.metrics.segmentation import class_areas, mean_iou
from opensiglip.float64 import widen
from opensiglip.inference.predictor import Predictor


def open_vocabulary(model: Predictor, examples: EncodedExamples, context: Context) -> BenchmarkResult:
    """Pointing accuracy of phrases, and mIoU of class names on the pixels of things; protocol ours.

    Pointing: the pixel most similar to the phrase lies in its box; phrases that name one box only. Beside it what a
    random pixel and the middle of the image score; and the same with the empty text taken off each phrase, what all
    texts share being more like the ground than like any thing (CLIP Surgery, arXiv 2304.05653). Segmentation: among the
    names of all things in the judged examples the most similar to each pixel, on pixels that belong to a thing (no
    background class, as in MaskCLIP's Pascal Context-59). Patch features come from `dense`; similarities are
    resized bilinearly to pixels.
    """
    if not model.has_text or model.to_text is None:
        raise NotApplicable("the model has no text tower, or no way to compare it with patches")
    metrics: dict[str, Any] = {}
    samples: list[Sample] = []
    missing: list[str] = []
    for part in (pointing, segmentation):
        try:
            some, shown = part(model, examples, context)
        except NotApplicable as reason:
            missing.append(str(reason))
            continue
        metrics |= some
        samples += shown
    if not metrics:
        raise NotApplicable("; ".join(missing))
    return BenchmarkResult(metrics, samples, notes=[f"{reason}." for reason in missing])


def pointing(model: Predictor, examples: EncodedExamples, context: Context) -> tuple[dict[str, Any], list[Sample]]:
    """How often the most similar pixel lies in the box of the phrase."""
    asked = [(place, next(iter(region.phrases.values())), region.bbox) for place, region in examples.referable_regions]
    if not asked:
        raise NotApplicable("no example has a region with one box and a phrase")
    phrases = list(dict.fromkeys(phrase for _, phrase, _ in asked))
    texts = dict(zip(phrases, model.encode_texts(phrases), strict=True))
    (nothing,) = model.encode_texts([""])
    owners = [place for place, _, _ in asked]
    by_place: dict[int, list[int]] = {}
    for number, place in enumerate(owners):
        by_place.setdefault(place, []).append(number)
    hits, centred, points = [False] * len(asked), [False] * len(asked), [(0.0, 0.0)] * len(asked)
    maps: dict[int, Tensor] = {}
    for place, patches in patch_maps(model, examples, list(by_place), context):
        numbers = by_place[place]
        wanted, (width, height) = torch.stack([texts[asked[number][1]] for number in numbers]), examples.size(place)
        similar = pixels(patches @ wanted.T, height, width)  # [n, h, w]
        apart = pixels(patches @ (wanted - nothing).T, height, width)
        for number, one, other in zip(numbers, similar, apart, strict=True):
            points[number], box = peak(one), asked[number][2]
            hits[number], centred[number] = inside(points[number], box), inside(peak(other), box)
            if len(maps) < 200:  # those that may be shown
                maps[number] = one.cpu()
    sizes = [examples.size(place) for place in owners]
    areas = [(x2 - x1) * (y2 - y1) / (w * h) for (w, h), (_, _, (x1, y1, x2, y2)) in zip(sizes, asked, strict=True)]
    middle = [inside((w / 2, h / 2), box) for (w, h), (_, _, box) in zip(sizes, asked, strict=True)]
    shown = [
        Sample(
            examples.examples[place].image,
            hits[number],
            f"Where is it? {phrase}",
            target_boxes=(box,),
            predicted_boxes=(dot(points[number], *sizes[number]),),
            heat_maps=(maps[number],),
        )
        for number in hits_and_misses(hits)
        if number in maps
        for place, phrase, box in [asked[number]]
    ]
    return {
        "phrases": len(asked),
        "images": len(by_place),
        **mean_with_interval("pointing", hits, owners),
        **mean_with_interval("pointing_centred", centred, owners),
        **mean_with_interval("pointing_random", areas, owners),
        **mean_with_interval("pointing_middle", middle, owners),
    }, shown


def segmentation(model: Predictor, examples: EncodedExamples, context: Context) -> tuple[dict[str, Any], list[Sample]]:
    """mIoU over the classes whose masks the examples have, in the first language that names them all.

    Beside it `image_iou`, the mean over images of each one's IoU of its own classes, which models are compared by.
    """
    masked = {place: some for place, example in enumerate(examples.examples) if (some := things(example))}
    known = {key(thing.names): thing.names for some in masked.values() for thing in some}
    order = {name: number for number, name in enumerate(sorted(known))}
    languages = [
        code for code in context.languages or examples.languages or ("en",) if all(code in n for n in known.values())
    ]
    if not masked or not languages:
        raise NotApplicable("no example has masks with names")
    raw = context.raw_class_names
    if not raw and (clash := unusable_names([known[name] for name in order], languages[0])):
        raise NotApplicable(f"{clash}; rename them, or give --raw-class-names to use the names as they stand")
    names = [class_name(known[name], languages[0], raw=raw) for name in order]
    texts = class_embeddings(model, names, languages[0])
    areas: list[Tensor] = []
    samples: list[Sample] = []
    for place, patches in patch_maps(model, examples, list(masked), context):
        width, height = examples.size(place)
        target = torch.full((height, width), -1)
        for thing in masked[place]:
            target[thing.mask] = order[key(thing.names)]
        found = pixels(patches @ texts.T, height, width).argmax(0).cpu()
        areas.append(class_areas(found, target, len(order)))
        if len(samples) < SHOWN:
            found = found.masked_fill(target < 0, -1)
            samples.append(segmentation_sample(examples.examples[place], found, target, list(order)))
    return {
        "masked_images": len(masked),
        "classes": len(order),
        **mean_iou("miou", torch.stack(areas)),
        **mean_with_interval("image_iou", [image_iou(one) for one in areas], list(masked)),
    }, samples


def image_iou(areas: Tensor) -> float:
    """Of one image's areas [3, C], as `class_areas` has them: the mean IoU of the classes that are in it."""
    shared, predicted, here = widen(areas)
    return float((shared / (predicted + here - shared))[here > 0].mean()) if here.any() else 0.0


def patch_maps(model: Predictor, examples: EncodedExamples, places: Sequence[int], context: Context) -> Any:
    """(place, unit patch features [rows, columns, D] in the texts' space) of each place."""
    bar = context.progress(range(0, len(places), BATCH), "open vocabulary")
    for at in bar:
        some = list(places[at : at + BATCH])
        images = [examples.examples[place].image for place in some]
        for place, image, features in zip(some, images, model.dense(images), strict=True):
            yield place, F.normalize(model.to_grid(image, features), dim=-1)


def pixels(similar: Tensor, height: int, width: int) -> Tensor:
    """Similarities [rows, columns, C] of patches -> [C, height, width]."""
    return F.interpolate(similar.permute(2, 0, 1)[None], size=(height, width), mode="bilinear")[0]


def peak(similar: Tensor) -> tuple[float, float]:
    """The middle x, y of the pixel of [h, w] that is most similar."""
    y, x = divmod(int(similar.argmax()), similar.shape[1])
    return x + 0.5, y + 0.5


def inside(point: tuple[float, float], box: Box) -> bool:
    """Does the point x, y lie in the box?"""
    return box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]


def dot(point: tuple[float, float], width: int, height: int) -> Box:
    """A small box around a point, to be drawn."""
    x, y, half = *point, max(width, height) / 64
    return x - half, y - half, x + half, y + half
