"""Open vocabulary without training: where in an image is what a text names, by similarity of patches and texts?"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from opensiglip.data.example import Box
from opensiglip.evaluation.benchmark import Context, Findings, Impossible, Picture, some_of_both
from opensiglip.evaluation.benchmarks.dense import SHOWN, segments
from opensiglip.evaluation.encoded import BATCH, Judged
from opensiglip.evaluation.labels import class_embeddings, class_name, key, things
from opensiglip.evaluation.metrics.scores import class_areas, mean_iou, measured
from opensiglip.inference.subject import Subject
from opensiglip.reports.drawing import heat


def openvocab(subject: Subject, judged: Judged, context: Context) -> Findings:
    """Pointing accuracy of phrases, and mIoU of class names on the pixels of things; protocol ours.

    Pointing: the pixel most similar to the phrase lies in its box; phrases that name one box only. Beside it what a
    random pixel and the middle of the image score; and the same with the empty text taken off each phrase, what all
    texts share being more like the ground than like any thing (CLIP Surgery, arXiv 2304.05653). Segmentation: among the
    names of all things in the judged examples the most similar to each pixel, on pixels that belong to a thing (no
    background class, as in MaskCLIP's Pascal Context-59). Patch features come from `Subject.dense`; similarities are
    resized bilinearly to pixels.
    """
    if not subject.has_text or subject.to_text is None:
        raise Impossible("the model has no text tower, or no way to compare it with patches")
    figures: dict[str, Any] = {}
    pictures: list[Picture] = []
    for part in (pointing, segmentation):
        said, shown = part(subject, judged, context)
        figures |= said
        pictures += shown
    if not figures:
        raise Impossible("no example has regions with phrases or masks with names")
    return Findings(figures, pictures)


def pointing(subject: Subject, judged: Judged, context: Context) -> tuple[dict[str, Any], list[Picture]]:
    """How often the most similar pixel lies in the box of the phrase."""
    asked = [
        (place, next(iter(region.phrases.values())), region.bbox)
        for place, example in enumerate(judged.examples)
        for region in example.regions
        if region.n_boxes == 1 and region.phrases
    ]
    if not asked:
        return {}, []
    phrases = list(dict.fromkeys(phrase for _, phrase, _ in asked))
    texts = dict(zip(phrases, subject.read(phrases), strict=True))
    (nothing,) = subject.read([""])
    owners = [place for place, _, _ in asked]
    by_place: dict[int, list[int]] = {}
    for number, place in enumerate(owners):
        by_place.setdefault(place, []).append(number)
    hits, centred, points = [False] * len(asked), [False] * len(asked), [(0.0, 0.0)] * len(asked)
    maps: dict[int, Tensor] = {}
    for place, patches in seen(subject, judged, list(by_place), context):
        numbers = by_place[place]
        wanted, (width, height) = torch.stack([texts[asked[number][1]] for number in numbers]), judged.size(place)
        similar = pixels(patches @ wanted.T, height, width)  # [n, h, w]
        apart = pixels(patches @ (wanted - nothing).T, height, width)
        for number, one, other in zip(numbers, similar, apart, strict=True):
            points[number], box = peak(one), asked[number][2]
            hits[number], centred[number] = inside(points[number], box), inside(peak(other), box)
            if len(maps) < 200:  # those that may be shown
                maps[number] = one.cpu()
    sizes = [judged.size(place) for place in owners]
    areas = [(x2 - x1) * (y2 - y1) / (w * h) for (w, h), (_, _, (x1, y1, x2, y2)) in zip(sizes, asked, strict=True)]
    middle = [inside((w / 2, h / 2), box) for (w, h), (_, _, box) in zip(sizes, asked, strict=True)]
    shown = [
        Picture(
            judged.examples[place].image,
            hits[number],
            f"Where is it? {phrase}",
            true_boxes=(box,),
            found_boxes=(dot(points[number], *sizes[number]),),
            beside=(heat(judged.examples[place].image, maps[number]),),
        )
        for number in some_of_both(hits)
        if number in maps
        for place, phrase, box in [asked[number]]
    ]
    return {
        "phrases": len(asked),
        "images": len(by_place),
        **measured("pointing", hits, owners),
        **measured("pointing_centred", centred, owners),
        **measured("pointing_random", areas, owners),
        **measured("pointing_middle", middle, owners),
    }, shown


def segmentation(subject: Subject, judged: Judged, context: Context) -> tuple[dict[str, Any], list[Picture]]:
    """mIoU over the classes whose masks the examples have, in the first language that names them all."""
    masked = {place: some for place, example in enumerate(judged.examples) if (some := things(example))}
    known = {key(thing.names): thing.names for some in masked.values() for thing in some}
    order = {name: number for number, name in enumerate(sorted(known))}
    spoken = [
        code for code in context.languages or judged.languages or ("en",) if all(code in n for n in known.values())
    ]
    if not masked or not spoken:
        return {}, []
    names = [str(class_name(known[name], spoken[0])) for name in order]
    texts = class_embeddings(subject, names, spoken[0])
    areas: list[Tensor] = []
    pictures: list[Picture] = []
    for place, patches in seen(subject, judged, list(masked), context):
        width, height = judged.size(place)
        true = torch.full((height, width), -1)
        for thing in masked[place]:
            true[thing.mask] = order[key(thing.names)]
        found = pixels(patches @ texts.T, height, width).argmax(0).cpu()
        areas.append(class_areas(found, true, len(order)))
        if len(pictures) < SHOWN:
            pictures.append(segments(judged.examples[place], found.masked_fill(true < 0, -1), true, list(order)))
    return {"masked_images": len(masked), "classes": len(order), **mean_iou("miou", torch.stack(areas))}, pictures


def seen(subject: Subject, judged: Judged, places: Sequence[int], context: Context) -> Any:
    """(place, unit patch features [rows, columns, D] in the texts' space) of each place."""
    bar = context.bar(range(0, len(places), BATCH), "open vocabulary")
    for at in bar:
        some = list(places[at : at + BATCH])
        images = [judged.examples[place].image for place in some]
        for place, image, features in zip(some, images, subject.dense(images), strict=True):
            yield place, F.normalize(subject.map_of(image, features), dim=-1)


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
