"""Depth probe: how far away each pixel is, read linearly off frozen patch features."""

from typing import Any

import torch
import torch.nn.functional as F

from opensiglip.evaluation.benchmark import BenchmarkResult, Context, NotApplicable, Sample
from opensiglip.evaluation.benchmarks.segmentation_probe import ROWS, SHOWN, patch_features, patches
from opensiglip.evaluation.encode import EncodedExamples
from opensiglip.evaluation.labels import depth
from opensiglip.evaluation.metrics.intervals import mean_with_interval
from opensiglip.evaluation.metrics.linear import fit_numbers
from opensiglip.float64 import widen
from opensiglip.inference.predictor import Predictor


def depth_probe(model: Predictor, examples: EncodedExamples, context: Context) -> BenchmarkResult:
    """Linear depth: the root mean squared error in metres of each image's known pixels, averaged over images.

    Least squares from each patch's feature, the pooled one beside it, to its mean depth; resized bilinearly to pixels
    (TIPS, Sec. 4.1, has a linear layer too; its loss is not given, so the fit is ours). Beside it: the mean depth of
    training everywhere. A sample is a hit where the probe beats that mean.
    """
    training = context.training_examples(model)
    known = {place: map_ for place, one in enumerate(training.examples) if (map_ := depth(one)) is not None}
    asked = {place: map_ for place, one in enumerate(examples.examples) if (map_ := depth(one)) is not None}
    asked = {place: map_ for place, map_ in asked.items() if map_.isfinite().any()}
    if not known or not asked:
        raise NotApplicable("no depth both in training and held out (folders: a column `depth`)")
    targets = torch.full((len(known), training.tokens.shape[1]), torch.nan)  # [E, N]; NaN where a token is padding
    for number, (place, map_) in enumerate(known.items()):
        down, across = model.frame.grid(training.examples[place].image, targets.shape[1])
        targets[number, : down * across] = patches(map_, down, across).nanmean(-1)
    rows = targets.isfinite().nonzero()
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(context.seed))[:ROWS]]
    y = targets[rows[:, 0], rows[:, 1]]
    readout = fit_numbers(patch_features(training, torch.tensor(list(known))[rows[:, 0]], rows[:, 1]), y)
    every = torch.arange(examples.tokens.shape[1])
    errors: list[float] = []
    blind: list[float] = []
    samples: list[Sample] = []
    for place, target in context.progress(asked.items(), "depth", len(asked)):
        image = examples.examples[place].image
        values = model.to_grid(image, readout(patch_features(examples, torch.full_like(every, place), every)))
        found = F.interpolate(values[None, None].float(), size=target.shape, mode="bilinear")[0, 0].cpu()
        seen = target.isfinite()
        errors.append(float(widen((found - target)[seen]).square().mean().sqrt()))
        blind.append(float((widen(y).mean() - target)[seen].square().mean().sqrt()))
        if len(samples) < SHOWN:
            maps = (found, target.nan_to_num(nan=float(y.mean())))
            question = f"How far? {errors[-1]:.2f} m off, the mean {blind[-1]:.2f} m; predicted, target"
            samples.append(Sample(image, errors[-1] < blind[-1], question, heat_maps=maps))
    metrics: dict[str, Any] = {"images": len(errors), "training_images": len(known)}
    metrics |= mean_with_interval("rmse_metres", errors, range(len(errors)))
    metrics |= mean_with_interval("rmse_metres_mean_depth", blind, range(len(blind)))
    return BenchmarkResult(metrics, samples)
