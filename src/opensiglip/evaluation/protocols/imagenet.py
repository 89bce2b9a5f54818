"""ImageNet: zero-shot classification of the 50,000 images of ILSVRC 2012's validation set among 1,000 classes."""

import csv
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from opensiglip.data.example import Example
from opensiglip.data.sources.image_folder import image_names
from opensiglip.data.sources.table import Listed
from opensiglip.errors import UserError
from opensiglip.evaluation.benchmark import BenchmarkResult, NotApplicable, Sample
from opensiglip.evaluation.benchmarks.zero_shot import SHOWN, name_likelihoods
from opensiglip.evaluation.class_names import class_embeddings, class_name, templates
from opensiglip.evaluation.encode import BATCH, EncodedExamples, framed_examples
from opensiglip.evaluation.metrics.intervals import mean_with_interval
from opensiglip.evaluation.protocols.protocol import How, Judged, cropped, listed
from opensiglip.inference.predictor import Predictor

DOWNLOAD = (
    "download ILSVRC 2012's validation images from https://image-net.org and sort them into a folder a class, "
    "val/n01440764/*.JPEG, or give Kaggle's folder with LOC_val_solution.csv"
)
KAGGLE = "ILSVRC/Data/CLS-LOC/val"
KEPT = 0.875  # of each side: big_vision's resize(int(size / 0.875)) and central_crop(size)
EACH = 6  # hits and misses shown


def zero_shot_imagenet(model: Predictor, folder: Path, how: How) -> dict[str, Judged]:
    """Top-1 and top-5 accuracy among all 1,000 classes, 64 images at a time so that none is kept in memory.

    By similarity with 81 prompts a class where the model has a text tower; else by the likelihood of the bare name.
    (big_vision evaluators/proj/image_text/discriminative_classifier.py; CapPa, Sec. 4.4)
    """
    source = validation(folder)
    numbers, names = {wnid: at for at, wnid in enumerate(classes())}, list(classes().values())
    by_text = model.has_text
    if not by_text and not (model.has_decoder and {"cap", "caption"} & set(model.tasks)):
        raise NotApplicable("the model has neither a text tower nor a decoder that writes captions")
    names = [class_name({"en": name}, "en") for name in names]
    embedded = class_embeddings(model, names, "en") if by_text else None
    hits: list[tuple[bool, bool]] = []
    samples: dict[bool, list[Sample]] = {True: [], False: []}
    width = tokens = 1
    for some in how.context.progress(batches(source, model, how), "imagenet", -(-how.of(source) // BATCH)):
        features = model.encode([example.image for example in some])
        examples = EncodedExamples(some, features.tokens, features.pooled, features.valid)
        scores = _scores(model, examples, names, embedded)
        best = scores.nan_to_num(nan=-torch.inf).argsort(dim=1, descending=True, stable=True)[:, :SHOWN].tolist()
        targets = [numbers[example.extras["label"]] for example in some]
        hits += [(found[0] == target, target in found) for found, target in zip(best, targets, strict=True)]
        for example, found, target in zip(some, best, targets, strict=True):
            shown = samples[found[0] == target]
            if len(shown) < EACH:
                guesses = tuple(names[at] for at in found)
                shown.append(Sample(example.image, found[0] == target, "Which class?", guesses, (names[target],)))
        width, tokens = (
            (features.tokens if features.pooled is None else features.pooled).shape[-1],
            len(features.tokens[0]),
        )
    if not hits:
        raise UserError(f"none of the images below {folder} can be read; {DOWNLOAD}.")
    name = "accuracy" if by_text else "accuracy_likelihood"
    metrics: dict[str, Any] = {"images": len(hits), "classes": len(names), "chance": 1 / len(names)}
    metrics |= {"prompts": len(templates("en"))} if by_text else {}
    for suffix, column in (("", 0), ("_top5", 1)):
        metrics |= mean_with_interval(f"{name}{suffix}", [hit[column] for hit in hits], range(len(hits)))
    return {"zeroshot": Judged(BenchmarkResult(metrics, samples[True] + samples[False]), len(hits), width, tokens)}


def batches(source: Listed, model: Predictor, how: How) -> Iterator[list[Example]]:
    """The images in the model's frame, `BATCH` at a time."""
    framed = framed_examples(source, model.frame, how.of(source))
    while some := list(islice(framed, BATCH)):
        yield some


def _scores(model: Predictor, examples: EncodedExamples, names: list[str], embedded: Tensor | None) -> Tensor:
    """[E, C], higher is likelier."""
    if embedded is None or examples.pooled is None:
        return name_likelihoods(model, examples, torch.arange(len(examples.examples)), names, "en")
    return (F.normalize(examples.pooled, dim=-1) @ embedded.T).cpu()


class CentreCropped(Listed):
    """Images without the eighth of each side that ImageNet's evaluation crops away."""

    def example(self, index: int, language: str | None = None) -> Example:
        example = super().example(index, language)
        high, wide = example.image.shape[-2:]
        height, width = round(high * KEPT), round(wide * KEPT)
        return cropped(example, (high - height) // 2, (wide - width) // 2, height, width)


def validation(folder: Path) -> Listed:
    """The validation images with their WordNet ids as labels. Raises UserError."""
    solution = folder / "LOC_val_solution.csv"
    if solution.is_file():
        records = [{"file_name": f"{name}.JPEG", "label": wnid} for name, wnid in read_solution(solution)]
        return listed(str(folder), records, [folder / KAGGLE, folder / "val", folder], DOWNLOAD, CentreCropped)
    root = folder / "val" if (folder / "val").is_dir() else folder
    found = [(name, name.split("/")[0]) for name in image_names(root)] if root.is_dir() else []
    records = [{"file_name": name, "label": wnid} for name, wnid in found if wnid in classes()]
    return listed(str(folder), records, [root], DOWNLOAD, CentreCropped)


def read_solution(file: Path) -> Iterator[tuple[str, str]]:
    """The image and class of each line of Kaggle's LOC_val_solution.csv. Raises UserError."""
    try:
        with file.open(encoding="utf-8", newline="") as opened:
            for row in csv.DictReader(opened):
                wnid = str(row["PredictionString"]).split(" ")[0]
                if wnid not in classes():
                    raise ValueError(f"class {wnid!r} is none of ImageNet's")
                yield str(row["ImageId"]), wnid
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise UserError(f"{file} can't be read ({error}); {DOWNLOAD}.") from None


@cache
def classes() -> dict[str, str]:
    """WordNet id -> class name, in ImageNet's order: the names of OpenAI's CLIP, as big_vision uses them."""
    text = files(__package__).joinpath("imagenet_classes.txt").read_text(encoding="utf-8")
    return dict(line.split(" ", 1) for line in text.splitlines())
