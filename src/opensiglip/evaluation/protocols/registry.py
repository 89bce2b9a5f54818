"""Published protocols by name, and one of them run on a model."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from opensiglip.errors import UserError
from opensiglip.evaluation.benchmark import DEFAULT_PROBE, BenchmarkResult, Context, NotApplicable, ProbeConfig
from opensiglip.evaluation.metrics.intervals import flatten, split_values
from opensiglip.evaluation.protocols import figures
from opensiglip.evaluation.protocols.aro import aro
from opensiglip.evaluation.protocols.imagenet import zero_shot_imagenet
from opensiglip.evaluation.protocols.karpathy import coco_5k, flickr30k
from opensiglip.evaluation.protocols.protocol import How, Judged, Protocol, nearest
from opensiglip.evaluation.protocols.referring import referring
from opensiglip.evaluation.protocols.sugarcrepe import sugarcrepe
from opensiglip.evaluation.protocols.xm3600 import xm3600
from opensiglip.evaluation.run import Evaluation
from opensiglip.inference.predictor import Predictor, load

SQUARE = "Images are resized to the model's square (a NaFlex model keeps their aspect ratio), whatever model it is."
ONCE = "A caption that stands twice under one image counts once."
REFERRING = (
    "A model whose own decoder writes boxes is asked itself; the published figures are of a decoder trained from "
    "scratch on the frozen encoder, as is done here for any other model.",
    "That decoder is 128 wide and learns --probe-steps steps from --train-count images of the clean train pool of the "
    "sets beside each other; the papers' decoder is larger and learns from all of the three sets.",
    "A box counts from an intersection over union of 0.5 on.",
)

PROTOCOLS: dict[str, Protocol] = {
    "imagenet": Protocol(
        "Zero-shot classification of ImageNet's validation images among 1,000 classes, 81 prompts a class.",
        zero_shot_imagenet,
        {"zeroshot": 50_000},
        (
            "The central 87.5 % of each side is resized to the model's square; big_vision resizes first, then crops.",
            "OpenAI's CLIP crops the centre without changing the aspect ratio, which is not done here.",
        ),
        figures.IMAGENET,
    ),
    "coco-5k": Protocol(
        "Retrieval among the 5,000 test images of Karpathy's split of COCO, five captions each.",
        coco_5k,
        {"retrieval": 5_000},
        (SQUARE, "Of each image the first five captions count, 25,000; big_vision takes all 25,010.", ONCE),
        figures.COCO,
    ),
    "flickr30k": Protocol(
        "Retrieval among the 1,000 test images of Karpathy's split of Flickr30k, five captions each.",
        flickr30k,
        {"retrieval": 1_000},
        (SQUARE, ONCE),
        figures.FLICKR,
    ),
    "xm3600": Protocol(
        "Retrieval among 3,600 images in each of 36 languages; figures are means over the languages.",
        xm3600,
        {"retrieval": 3_600},
        (SQUARE, ONCE),
        figures.XM3600,
    ),
    "refcoco": Protocol(
        "Referring expressions of RefCOCO's val, testA and testB: the share of boxes found.",
        partial(referring, "refcoco"),
        {"val": 1_500, "testA": 750, "testB": 750},
        REFERRING,
        figures.REFCOCO,
    ),
    "refcoco+": Protocol(
        "Referring expressions of RefCOCO+'s val, testA and testB: the share of boxes found.",
        partial(referring, "refcoco+"),
        {"val": 1_500, "testA": 750, "testB": 750},
        REFERRING,
        figures.REFCOCO_PLUS,
    ),
    "refcocog": Protocol(
        "Referring expressions of RefCOCOg's val and test (split by umd): the share of boxes found.",
        partial(referring, "refcocog"),
        {"val": 1_300, "test": 2_600},
        REFERRING,
        figures.REFCOCOG,
    ),
    "sugarcrepe": Protocol(
        "SugarCrepe: is a caption preferred to a hard negative, for seven kinds of them?",
        sugarcrepe,
        {"compositionality": 7_511},
        (SQUARE, "Likelihood under a captioning decoder, and that decoder blind, stand beside similarity."),
    ),
    "aro": Protocol(
        "ARO: is the true caption preferred to one whose relation or attributes are swapped?",
        aro,
        {"relation": 23_937, "attribution": 28_748},
        (
            SQUARE,
            "COCO-Order and Flickr30k-Order are left out: their negatives are made by a part-of-speech tagger as the "
            "authors' code runs, so there is no file of them to read.",
            "A decoder that sees no image nearly wins here (CapPa, Table 6): read likelihood beside blind likelihood.",
        ),
        figures.ARO_FIGURES,
    ),
}


def run_protocol(
    model: str | Path | Predictor,
    name: str,
    folder: str,
    *,
    count: int | None = None,
    train_count: int = 2000,
    languages: Sequence[str] | None = None,
    seed: int = 0,
    probe: ProbeConfig = DEFAULT_PROBE,
    quiet: bool = False,
    trust: bool = False,
) -> Evaluation:
    """Run a published protocol on a folder with its files as downloaded; `count`: at most so many examples of a part.

    The record is that of `run_evaluation`, a task for each part, with `protocol`: what differs from the published one,
    and the figures of the nearest published model. Raises UserError on bad input.
    """
    if name not in PROTOCOLS:
        raise UserError(f"--benchmark {name!r} is unknown; there are {', '.join(PROTOCOLS)}.")
    if (count is not None and count < 1) or train_count < 1 or probe.steps < 1:
        raise UserError("--count, --train-count and --probe-steps are at least 1.")
    protocol, place = PROTOCOLS[name], Path(folder).expanduser().resolve()
    if not place.is_dir():
        raise UserError(f"{folder} is not a folder; give the one with {name}'s files as downloaded.")
    subject = load(model) if isinstance(model, str | Path) else model
    chosen = None if languages is None or "all" in languages else tuple(languages)
    context = Context(None, chosen, seed, train_count, False, quiet, trust, probe)
    try:
        judged = protocol.judge(subject, place, How(context, count))
    except NotApplicable as reason:
        raise UserError(f"{subject.name} can't be evaluated with --benchmark {name}: {reason}; name another.") from None
    metrics: dict[str, dict[str, Any]] = {}
    values: dict[str, dict[str, Any]] = {}
    for part, one in judged.items():
        metrics[part], values[part] = split_values(one.result.metrics)
    first = next(iter(judged.values()))
    row = nearest(protocol, found := flatten(metrics), subject.name, first)
    published = row and {
        "model": row.model,
        "source": row.source,
        "figures": {key: [found[key], figure] for key, figure in row.figures.items() if key in found},
    }
    notes = few(protocol, judged) + [f"{part}: {note}" for part, one in judged.items() for note in one.result.notes]
    record: dict[str, Any] = {
        "model": subject.name,
        "data": folder,
        "split": name,
        "examples": sum(one.examples for one in judged.values()),
        "frame": str(subject.frame),
        "seed": seed,
        "command": shlex.join(
            ["opensiglip", "eval", subject.name, "--benchmark", name, folder]
            + (["--count", str(count)] if count is not None else [])
            + (["--train-count", str(train_count)] if train_count != 2000 else [])
            + (["--languages", ",".join(languages)] if languages else [])
            + (["--probe-steps", str(probe.steps)] if probe.steps != DEFAULT_PROBE.steps else [])
            + (["--seed", str(seed)] if seed else [])
        ),
        "tasks": metrics,
        "values": values,
        "left_out": {},
        "protocol": {"about": protocol.about, "differs": list(protocol.differs), "published": published},
    } | ({"notes": notes} if notes else {})
    results: dict[str, BenchmarkResult] = {
        part: replace(one.result, metrics=metrics[part], values=values[part]) for part, one in judged.items()
    }
    return Evaluation(record, results, dict.fromkeys(results, protocol.about))


def few(protocol: Protocol, judged: dict[str, Judged]) -> list[str]:
    """A sentence for each part of which fewer examples were judged than the published protocol has."""
    return [
        f"{part}: {one.examples:,} of the {protocol.sizes[part]:,} published examples were judged, so the figures are "
        "not comparable with published ones."
        for part, one in judged.items()
        if one.examples < protocol.sizes[part]
    ]
