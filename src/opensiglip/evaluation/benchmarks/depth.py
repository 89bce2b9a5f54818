"""Depth probe: how far away each pixel is, read linearly off frozen patch features."""

import math
from typing import Any

import torch
import torch.nn.functional as F

from opensiglip.evaluation.benchmark import Context, Findings, Impossible, Picture
from opensiglip.evaluation.benchmarks.dense import ROWS, SHOWN, patch_features, patches
from opensiglip.evaluation.encoded import Judged
from opensiglip.evaluation.labels import depth
from opensiglip.evaluation.metrics.linear import ridge
from opensiglip.evaluation.metrics.scores import measured
from opensiglip.inference.subject import Subject
from opensiglip.reports.drawing import heat


def depth_probe(subject: Subject, judged: Judged, context: Context) -> Findings:
    """Linear depth: root mean squared error in metres over the pixels whose depth is known.

    Least squares from each patch's feature, the pooled one beside it, to its mean depth; resized bilinearly to pixels
    (TIPS, Sec. 4.1, has a linear layer too; its loss is not given, so the fit is ours). Beside it: the mean depth of
    training everywhere. A picture is a hit where the probe beats that mean.
    """
    trained = context.trained(subject)
    known = {place: map_ for place, one in enumerate(trained.examples) if (map_ := depth(one)) is not None}
    asked = {place: map_ for place, one in enumerate(judged.examples) if (map_ := depth(one)) is not None}
    if not known or not asked:
        raise Impossible("no depth both in training and held out (folders: a column `depth`)")
    targets = torch.full((len(known), trained.tokens.shape[1]), torch.nan)  # [E, N]; NaN where a token is padding
    for number, (place, map_) in enumerate(known.items()):
        down, across = subject.frame.grid(trained.examples[place].image, targets.shape[1])
        targets[number, : down * across] = patches(map_, down, across).nanmean(-1)
    rows = targets.isfinite().nonzero()
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(context.seed))[:ROWS]]
    y = targets[rows[:, 0], rows[:, 1]]
    fitted = ridge(patch_features(trained, torch.tensor(list(known))[rows[:, 0]], rows[:, 1]), y)
    every = torch.arange(judged.tokens.shape[1])
    errors: list[float] = []
    blind: list[float] = []
    counts: list[int] = []
    pictures: list[Picture] = []
    for place, true in context.bar(asked.items(), "depth", len(asked)):
        image = judged.examples[place].image
        said = subject.map_of(image, fitted(patch_features(judged, torch.full_like(every, place), every)))
        found = F.interpolate(said[None, None].float(), size=true.shape, mode="bilinear")[0, 0].cpu()
        kept = true.isfinite()
        counts.append(int(kept.sum()))
        errors.append(float((found - true)[kept].double().square().mean()))
        blind.append(float((y.double().mean() - true)[kept].square().mean()))
        if len(pictures) < SHOWN:
            beside = (heat(image, found), heat(image, true.nan_to_num(nan=float(y.mean()))))
            words = f"How far? {math.sqrt(errors[-1]):.2f} m off, the mean {math.sqrt(blind[-1]):.2f} m; found, true"
            pictures.append(Picture(image, errors[-1] < blind[-1], words, beside=beside))
    places = range(len(counts))
    figures: dict[str, Any] = {"images": len(counts), "training_images": len(known)}
    for name, squares in (("rmse_metres", errors), ("rmse_metres_mean_depth", blind)):
        mean = measured(name, squares, places, counts)
        figures |= {name: math.sqrt(mean[name]), f"{name}_ci95": [math.sqrt(end) for end in mean[f"{name}_ci95"]]}
    return Findings(figures, pictures)
