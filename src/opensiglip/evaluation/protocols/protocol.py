"""A published protocol: which files it reads, how it judges a model on them, and what is published about it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import log
from pathlib import Path
from typing import Any

from torch import Tensor

from opensiglip.data.example import Example, Source
from opensiglip.data.sources.columns import Columns
from opensiglip.data.sources.records import holding
from opensiglip.data.sources.spec import Spec
from opensiglip.data.sources.table import Listed
from opensiglip.errors import UserError
from opensiglip.evaluation.benchmark import Benchmark, BenchmarkResult, Context
from opensiglip.evaluation.encode import encode_examples
from opensiglip.evaluation.leaks import leaks
from opensiglip.inference.predictor import Predictor

COLUMNS = Columns("file_name", ("captions",), "label", None, ("captions_i18n", "negative_caption"))


@dataclass(frozen=True)
class Published:
    """What is published of one model. It is compared with ours by the width of its image embedding and its tokens."""

    model: str
    width: int  # of the image embedding
    tokens: int  # of an image
    figures: Mapping[str, float]  # by `part: metric`, shares from 0 to 1
    source: str


@dataclass(frozen=True)
class Judged:
    """One part of a protocol, a split or a kind of question: its result, and of how many examples."""

    result: BenchmarkResult
    examples: int
    width: int  # of the model's image embedding
    tokens: int  # that the model makes of an image


@dataclass(frozen=True)
class How:
    """What a protocol is run with: at most `count` examples of each part (None: all), and what benchmarks may use."""

    context: Context
    count: int | None = None

    def of(self, source: Source) -> int:
        """How many examples of a source are judged."""
        return len(source) if self.count is None else min(self.count, len(source))


@dataclass(frozen=True)
class Protocol:
    """A row of the table `PROTOCOLS`."""

    about: str
    judge: Callable[[Predictor, Path, How], dict[str, Judged]]  # by part; the folder holds the files as downloaded
    sizes: Mapping[str, int]  # examples of each part as published
    differs: tuple[str, ...]  # sentences
    published: tuple[Published, ...] = ()


def judge_source(model: Predictor, source: Source, benchmark: Benchmark, how: How, *, tokens: bool = True) -> Judged:
    """Encode a source and run one benchmark on it."""
    examples = encode_examples(model, source, how.of(source), tokens=tokens, quiet=how.context.quiet)
    result = benchmark(model, examples, how.context)
    result = replace(result, notes=[*result.notes, *leaks(model.name, examples.examples)])
    width = (examples.tokens if examples.pooled is None else examples.pooled).shape[-1]
    return Judged(result, len(examples.examples), width, patches(model, examples.examples[0].image))


def patches(model: Predictor, image: Tensor) -> int:
    """How many tokens the model's tower makes of a framed image [3, h, w]."""
    return model.encode([image]).tokens.shape[1]


def find_file(folder: Path, names: Sequence[str], download: str) -> Path:
    """The first of these files that the folder has. Raises UserError, which says where it is downloaded from."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder} has no {names[0]}; {download}.")


def listed(
    name: str, records: Sequence[dict[str, Any]], places: Sequence[Path], download: str, kind: type[Listed] = Listed
) -> Listed:
    """Rows of metadata.jsonl as the source `test`, images in the first of the places that has one. Raises UserError."""
    if not records:
        raise UserError(f"{name} has no row of the published split; {download}.")
    first = str(records[0]["file_name"])
    root = holding(first, places)
    if root is None:
        raise UserError(f"image {first} of {name} is in none of {', '.join(map(str, places))}; {download}.")
    return kind(Spec(name, "", name), "test", None, records, COLUMNS, root, ["test"] * len(records))


def nearest(protocol: Protocol, found: Mapping[str, float], model: str, judged: Judged) -> Published | None:
    """The published model nearest to ours of those with a metric of ours: by width, then tokens, then by its name."""
    rows = [row for row in protocol.published if row.figures.keys() & found.keys()]
    spelled = model.lower().replace("-", "").replace(" ", "")

    def distance(row: Published) -> tuple[float, float, int]:
        family = row.model.rsplit(" ", 1)[0].lower().replace(" ", "")
        same = len(family) if family in spelled else 0
        return abs(log(row.width / judged.width)), abs(log(row.tokens / judged.tokens)), -same

    return min(rows, key=distance, default=None)


def cropped(example: Example, top: int, left: int, height: int, width: int) -> Example:
    """The example with a part of its image, at least a pixel of it; for examples without boxes."""
    high, wide = example.image.shape[-2:]
    top, left = min(max(top, 0), high - 1), min(max(left, 0), wide - 1)
    image = example.image[:, top : top + max(height, 1), left : left + max(width, 1)].contiguous()
    return Example(image, example.captions, (), example.name, example.extras, example.group)
