"""ARO: of a relation or of attributes swapped between two things, is the true caption preferred?"""

from collections import Counter
from dataclasses import replace
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from opensiglip.data.example import Example
from opensiglip.data.sources.records import read_json
from opensiglip.data.sources.table import Listed
from opensiglip.data.sources.values import is_number
from opensiglip.errors import UserError
from opensiglip.evaluation.benchmark import BenchmarkResult, Context
from opensiglip.evaluation.benchmarks.compositionality import compositionality
from opensiglip.evaluation.encode import EncodedExamples
from opensiglip.evaluation.metrics.intervals import VALUES, mean_with_interval
from opensiglip.evaluation.protocols.protocol import How, Judged, cropped, find_file, judge_source, listed
from opensiglip.inference.predictor import Predictor

DOWNLOAD = (
    "visual_genome_relation.json, visual_genome_attribution.json and their images are downloaded by the code at "
    "https://github.com/mertyg/vision-language-models-are-bows"
)
BOX = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")  # pixels of the image
FEWEST = 25  # pairs that two attributes have, to count in the mean over attributes
WAYS = ("similarity", "likelihood", "blind_likelihood")


def aro(model: Predictor, folder: Path, how: How) -> dict[str, Judged]:
    """VG-Relation and VG-Attribution, each image cropped to the box of its two things.

    As published, the mean over relations that are not symmetric, and over pairs of attributes with 25 questions or
    more.    (vision-language-models-are-bows: dataset_zoo/aro_datasets.py and the notebook "Replicate ARO!")
    """
    found = {}
    for part in ("relation", "attribution"):
        file = find_file(folder, [f"visual_genome_{part}.json"], DOWNLOAD)
        stored = read_json(file, "ARO's shape")
        if not isinstance(stored, list):
            raise UserError(f"{file} is not a list; {DOWNLOAD}.")
        records = [_record(item, part, file) for item in stored]
        source = listed(str(folder), records, [folder / "images", folder], DOWNLOAD, Crops)
        found[part] = judge_source(model, source, partial(by_kind, part), how)
    return found


def by_kind(part: str, model: Predictor, examples: EncodedExamples, context: Context) -> BenchmarkResult:
    """The metrics of `compositionality` over all pairs, and `macro_...`, the mean over kinds that count."""
    result = compositionality(model, examples, context)
    metrics = {name: value for name, value in result.metrics.items() if name != "kinds"}
    kinds = [str(example.extras["label"]) for example in examples.examples]
    counts = Counter(kinds)
    kept = {kind for kind, count in counts.items() if counts_in_mean(part, kind, count)}
    metrics["kinds_in_mean"] = len(kept)
    for way in WAYS:
        if kept and f"{way}{VALUES}" in metrics:
            values = metrics[f"{way}{VALUES}"]
            pairs = [pair for pair in zip(values["scores"], values["clusters"], strict=True) if kinds[pair[1]] in kept]
            scores, owners = zip(*pairs, strict=True)
            weights = [1 / counts[kinds[owner]] for owner in owners]
            metrics |= mean_with_interval(f"macro_{way}", scores, owners, weights)
    return replace(result, metrics=metrics)


def counts_in_mean(part: str, kind: str, count: int) -> bool:
    """Is a relation or a pair of attributes one of those that the published mean is over?"""
    return kind not in symmetric() if part == "relation" else count >= FEWEST


@cache
def symmetric() -> frozenset[str]:
    """The relations that the authors leave out of their mean, as most hold the other way round too."""
    text = files(__package__).joinpath("aro_left_out.txt").read_text(encoding="utf-8")
    return frozenset(text.splitlines())


class Crops(Listed):
    """Images cropped to the box that their row names."""

    def example(self, index: int, language: str | None = None) -> Example:
        left, top, width, height = self.records[self.rows.row(index)]["crop"]
        return cropped(super().example(index, language), top, left, height, width)


def _record(item: Any, part: str, file: Path) -> dict[str, Any]:
    """A row of metadata.jsonl. Raises UserError."""
    attributes = item.get("attributes") if isinstance(item, dict) else None
    try:
        kind = item["relation_name"] if part == "relation" else "_".join(map(str, attributes[:2]))  # type: ignore[index]
        crop = [int(item[side]) for side in BOX if is_number(item[side])]
        row = {"file_name": str(item["image_path"]), "captions": [item["true_caption"]], "label": str(kind)}
        if len(crop) != len(BOX):
            raise TypeError
        return row | {"negative_caption": item["false_caption"], "crop": crop}
    except (KeyError, TypeError):
        raise UserError(f"{file} has a row without image_path, captions, box or kind; {DOWNLOAD}.") from None
