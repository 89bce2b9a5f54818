"""Segmentation probe: the class of every pixel, read linearly off frozen patch features."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from opensiglip.data.example import Example
from opensiglip.evaluation.benchmark import BenchmarkResult, Context, NotApplicable, Sample
from opensiglip.evaluation.class_names import key
from opensiglip.evaluation.encode import EncodedExamples
from opensiglip.evaluation.labels import things
from opensiglip.evaluation.metrics.intervals import mean_with_interval
from opensiglip.evaluation.metrics.linear import fit_classifier, knn
from opensiglip.evaluation.metrics.segmentation import class_areas, mean_iou
from opensiglip.float64 import widen
from opensiglip.inference.predictor import Predictor

GROUND = "(ground)"
SHOWN = 8
ROWS = 50_000  # patches to fit on at most
PENALTY = 1e-3


def segmentation_probe(model: Predictor, examples: EncodedExamples, context: Context) -> BenchmarkResult:
    """Linear segmentation: mIoU over classes, the ground one of them, and pixel accuracy.

    A linear layer on each patch's feature, the pooled one beside it (SigLIP 2, Sec. 3.3.1, after TIPS, Sec. 4.1); its
    logits are resized bilinearly to pixels. Fitted to each training patch's most frequent class by logistic
    regression (ours: the papers do not give their protocol in detail). Beside it: ground everywhere, and what nearest
    patches say (`by_nearest_patches`).
    """
    training = context.training_examples(model)
    known = [place for place, example in enumerate(training.examples) if things(example)]
    asked = [place for place, example in enumerate(examples.examples) if things(example)]
    if not known or not asked:
        raise NotApplicable("no masks both in training and held out (folders: a column `masks`)")
    names = sorted({key(thing.names) for place in known for thing in things(training.examples[place])})
    order = {name: number for number, name in enumerate([GROUND, *names])}
    targets = patch_classes(model, training, known, order)  # [E, N]
    rows = (targets >= 0).nonzero()
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(context.seed))[:ROWS]]
    x = patch_features(training, torch.tensor(known)[rows[:, 0]], rows[:, 1])
    fitted = fit_classifier(x, targets[rows[:, 0], rows[:, 1]], len(order), context.seed, penalties=(PENALTY,))
    areas: list[Tensor] = []
    nothing: list[Tensor] = []
    hits: list[float] = []
    samples: list[Sample] = []
    for place in context.progress(asked, "segmentation", len(asked)):
        example = examples.examples[place]
        true = class_map(example, order)
        every = torch.arange(examples.tokens.shape[1])
        logits = model.to_grid(example.image, fitted(patch_features(examples, torch.full_like(every, place), every)))
        found = F.interpolate(logits.permute(2, 0, 1)[None], size=true.shape, mode="bilinear")[0].argmax(0).cpu()
        areas.append(class_areas(found, true, len(order)))
        nothing.append(class_areas(torch.zeros_like(true), true, len(order)))
        right = (found == true)[true >= 0]
        hits.append(float(widen(right).mean()) if len(right) else 0.0)
        if len(samples) < SHOWN:
            samples.append(segmentation_sample(example, found, true, list(order)))
    metrics = {
        "images": len(asked),
        "training_images": len(known),
        "classes": len(order),
        **mean_iou("miou", torch.stack(areas)),
        **mean_iou("miou_ground_everywhere", torch.stack(nothing)),
        **mean_with_interval("pixel_accuracy", hits, range(len(hits))),
        **by_nearest_patches(
            training.tokens[known], targets, examples.tokens[asked], patch_classes(model, examples, asked, order)
        ),
    }
    return BenchmarkResult(metrics, samples)


def by_nearest_patches(x: Tensor, y: Tensor, test: Tensor, targets: Tensor) -> dict[str, Any]:
    """k-NN on patch tokens x [E, N, D] of the classes y [E, N], -1 where unknown: nothing is fitted.

    Of each image of `test` [I, N, D]: the share of its patches that are of the class voted, and the mean over its true
    classes of intersection over union. `image_probes` has the same votes of whole images.
    """
    classes, known = int(torch.cat([y.flatten(), targets.flatten()]).max()) + 1, y >= 0
    x, y = x[known].cpu(), y[known]
    accuracies: list[float] = []
    ious: list[float] = []
    for tokens, true in zip(test.cpu(), targets, strict=True):
        counted = true >= 0
        found, true = knn(x, y, tokens[counted], classes).argmax(1), true[counted]
        shared, predicted, here = class_areas(found, true, classes)
        seen = here > 0
        accuracies.append(float(widen(found == true).mean()) if len(true) else 0.0)
        ious.append(float((widen(shared) / (predicted + here - shared))[seen].mean()) if len(true) else 0.0)
    images = range(len(ious))
    return mean_with_interval("knn_accuracy", accuracies, images) | mean_with_interval("knn_iou", ious, images)


def patch_classes(model: Predictor, examples: EncodedExamples, places: Sequence[int], order: dict[str, int]) -> Tensor:
    """[len(places), N] int64: each patch's most frequent class; -1 where that is of no known class, and at padding."""
    targets = torch.full((len(places), examples.tokens.shape[1]), -1)
    for number, place in enumerate(places):
        example = examples.examples[place]
        down, across = model.frame.grid(example.image, targets.shape[1])
        targets[number, : down * across] = most_frequent(class_map(example, order), down, across)
    return targets


def patch_features(examples: EncodedExamples, places: Tensor, patches: Tensor) -> Tensor:
    """[M, D or 2 D]: tokens of those patches, the pooled feature of their image beside each where there is one."""
    tokens = examples.tokens[places, patches]
    return tokens if examples.pooled is None else torch.cat([tokens, examples.pooled[places]], dim=-1)


def class_map(example: Example, order: dict[str, int]) -> Tensor:
    """[h, w] int64: the class of each pixel, 0 for the ground, -1 for what is of no known class."""
    shown = torch.zeros(example.image.shape[-2:], dtype=torch.int64)
    for thing in things(example):
        shown[thing.mask] = order.get(key(thing.names), -1)
    return shown


def most_frequent(map_: Tensor, rows: int, columns: int) -> Tensor:
    """[h, w] -> [rows * columns]: each patch's most frequent class."""
    return patches(map_, rows, columns).mode(-1)[0]


def patches(map_: Tensor, rows: int, columns: int) -> Tensor:
    """[h, w] -> [rows * columns, pixels of a patch], row by row. What the grid does not divide is cut off."""
    down, across = map_.shape[0] // rows, map_.shape[1] // columns
    cut = map_[: rows * down, : columns * across].unflatten(1, (columns, across)).unflatten(0, (rows, down))
    return cut.transpose(1, 2).flatten(2).flatten(0, 1)


def segmentation_sample(example: Example, predicted: Tensor, target: Tensor, names: Sequence[str]) -> Sample:
    """The predicted map beside the target; correct if most of the things' pixels are."""
    solid = target >= (1 if names[0] == GROUND else 0)
    share = float(widen((predicted == target)[solid]).mean()) if solid.any() else 0.0
    texts = [", ".join(names[one] for one in some[solid].unique().tolist() if one >= 0) for some in (predicted, target)]
    return Sample(
        example.image,
        share >= 0.5,
        f"Which thing is where? {100 * share:.0f} % of their pixels; below: predicted, target",
        (texts[0],),
        (texts[1],),
        class_maps=(predicted, target),
    )
