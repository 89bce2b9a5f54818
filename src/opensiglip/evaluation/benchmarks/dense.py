"""Dense probes: a linear layer on frozen patch features, for the class of every pixel."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from opensiglip.data.example import Example
from opensiglip.evaluation.benchmark import Context, Findings, Impossible, Picture
from opensiglip.evaluation.encoded import Judged
from opensiglip.evaluation.labels import key, things
from opensiglip.evaluation.metrics.linear import fit_linear
from opensiglip.evaluation.metrics.scores import class_areas, mean_iou, measured
from opensiglip.inference.subject import Subject
from opensiglip.reports.drawing import paint

GROUND = "(ground)"
SHOWN = 8
ROWS = 50_000  # patches to fit on at most
PENALTY = 1e-3


def segmentation_probe(subject: Subject, judged: Judged, context: Context) -> Findings:
    """Linear segmentation: mIoU over classes, the ground one of them, and pixel accuracy.

    A linear layer on each patch's feature, the pooled one beside it (SigLIP 2, Sec. 3.3.1, after TIPS, Sec. 4.1); its
    logits are resized bilinearly to pixels. Fitted to each training patch's most frequent class by logistic
    regression (ours: the papers do not give their protocol in detail). Beside it: ground everywhere.
    """
    trained = context.trained(subject)
    known = [place for place, example in enumerate(trained.examples) if things(example)]
    asked = [place for place, example in enumerate(judged.examples) if things(example)]
    if not known or not asked:
        raise Impossible("no masks both in training and held out (folders: a column `masks`)")
    names = sorted({key(thing.names) for place in known for thing in things(trained.examples[place])})
    order = {name: number for number, name in enumerate([GROUND, *names])}
    targets = torch.full((len(known), trained.tokens.shape[1]), -1)  # [E, N]; -1 where a token is padding
    for number, place in enumerate(known):
        example = trained.examples[place]
        down, across = subject.frame.grid(example.image, targets.shape[1])
        targets[number, : down * across] = most_frequent(class_map(example, order), down, across)
    rows = (targets >= 0).nonzero()
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(context.seed))[:ROWS]]
    x = patch_features(trained, torch.tensor(known)[rows[:, 0]], rows[:, 1])
    fitted = fit_linear(x, targets[rows[:, 0], rows[:, 1]], len(order), context.seed, penalties=(PENALTY,))
    areas: list[Tensor] = []
    nothing: list[Tensor] = []
    hits: list[float] = []
    pictures: list[Picture] = []
    for place in context.bar(asked, "segmentation", len(asked)):
        example = judged.examples[place]
        true = class_map(example, order)
        every = torch.arange(judged.tokens.shape[1])
        logits = subject.map_of(example.image, fitted(patch_features(judged, torch.full_like(every, place), every)))
        found = F.interpolate(logits.permute(2, 0, 1)[None], size=true.shape, mode="bilinear")[0].argmax(0).cpu()
        areas.append(class_areas(found, true, len(order)))
        nothing.append(class_areas(torch.zeros_like(true), true, len(order)))
        right = (found == true)[true >= 0]
        hits.append(float(right.double().mean()) if len(right) else 0.0)
        if len(pictures) < SHOWN:
            pictures.append(segments(example, found, true, list(order)))
    figures = {
        "images": len(asked),
        "training_images": len(known),
        "classes": len(order),
        **mean_iou("miou", torch.stack(areas)),
        **mean_iou("miou_ground_everywhere", torch.stack(nothing)),
        **measured("pixel_accuracy", hits, range(len(hits))),
    }
    return Findings(figures, pictures)


def patch_features(judged: Judged, places: Tensor, patches: Tensor) -> Tensor:
    """[M, D or 2 D]: tokens of those patches, the pooled feature of their image beside each where there is one."""
    tokens = judged.tokens[places, patches]
    return tokens if judged.pooled is None else torch.cat([tokens, judged.pooled[places]], dim=-1)


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


def segments(example: Example, found: Tensor, true: Tensor, names: Sequence[str]) -> Picture:
    """The found map beside the true one; right if most of the things' pixels are."""
    solid = true >= (1 if names[0] == GROUND else 0)
    share = float((found == true)[solid].double().mean()) if solid.any() else 0.0
    said, shown = ([names[one] for one in some[solid].unique().tolist() if one >= 0] for some in (found, true))
    return Picture(
        example.image,
        share >= 0.5,
        f"Which thing is where? {100 * share:.0f} % of their pixels; below: found, true",
        (", ".join(said),),
        (", ".join(shown),),
        beside=(paint(found), paint(true)),
    )
