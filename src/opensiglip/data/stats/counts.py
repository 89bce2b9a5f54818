"""What is counted of a stretch of a source's rows; the counts of all stretches add up."""

import hashlib
import heapq
from collections import Counter, defaultdict
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from opensiglip.data.example import BrokenExample, Example, Source
from opensiglip.data.sources.cleaned import Cleaned
from opensiglip.data.stats.duplicates import perceptual_hash
from opensiglip.data.stats.histogram import Histogram
from opensiglip.data.stats.language import detect
from opensiglip.data.text import TextPipeline

NAMES = 5  # of the broken rows of each reason
EXTREMES = 8  # images of each kind that a page shows
LABELS = 10_000  # classes that are counted apart


@dataclass(frozen=True)
class Wish:
    """What is counted beside the usual."""

    pipeline: TextPipeline | None = None  # tokens by its tokenizer
    languages: bool = False  # are they detected?
    duplicates: bool = True


class Apart(defaultdict[str, Histogram]):
    """A histogram a key, such as a language."""

    def __init__(self) -> None:
        super().__init__(Histogram)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (dict(self),)

    def merge(self, other: "Apart") -> None:
        for key, histogram in other.items():
            self[key].merge(histogram)


def _restored(histograms: dict[str, Histogram]) -> Apart:
    apart = Apart()
    apart.update(histograms)
    return apart


class Extremes:
    """The rows of the largest values of something."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, int]] = []

    def add(self, value: float, row: int) -> None:
        heapq.heappush(self.rows, (value, row))
        if len(self.rows) > EXTREMES:
            heapq.heappop(self.rows)

    def merge(self, other: "Extremes") -> None:
        for value, row in other.rows:
            self.add(value, row)


@dataclass
class Counts:
    """Counts of rows; all of it adds up, and none of it but `digests`, `hashes` and `texts` grows with the rows."""

    rows: int = 0
    broken: Counter[str] = field(default_factory=Counter)
    broken_names: dict[str, list[str]] = field(default_factory=dict)
    cleaned: Counter[str] = field(default_factory=Counter)
    width: Histogram = field(default_factory=Histogram)
    height: Histogram = field(default_factory=Histogram)
    aspect: Histogram = field(default_factory=Histogram)  # width / height
    bytes: Histogram = field(default_factory=Histogram)
    captions: Histogram = field(default_factory=Histogram)  # of an image
    letters: Apart = field(default_factory=Apart)  # of a caption, by language
    words: Apart = field(default_factory=Apart)
    tokens: Apart = field(default_factory=Apart)
    sources: Counter[str] = field(default_factory=Counter)  # who wrote the captions
    detected: Counter[tuple[str, str]] = field(default_factory=Counter)  # (given, detected)
    regions: Histogram = field(default_factory=Histogram)  # of an image
    area: Histogram = field(default_factory=Histogram)  # of a box, % of the image
    box_aspect: Histogram = field(default_factory=Histogram)
    score: Histogram = field(default_factory=Histogram)
    phrases: Apart = field(default_factory=Apart)  # letters, by language
    columns: Counter[str] = field(default_factory=Counter)  # rows that have each
    labels: Counter[str] = field(default_factory=Counter)
    smallest: Extremes = field(default_factory=Extremes)
    widest: Extremes = field(default_factory=Extremes)
    tallest: Extremes = field(default_factory=Extremes)
    indices: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # rows of the hashes
    digests: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))  # of files
    hashes: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))  # of what is seen
    texts: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))  # of captions

    def merge(self, other: "Counts") -> None:
        """Add other counts, but for the arrays: see `Arrays`."""
        for one in fields(self):
            mine, theirs = getattr(self, one.name), getattr(other, one.name)
            if isinstance(mine, int):
                setattr(self, one.name, mine + theirs)
            elif isinstance(mine, Counter):
                mine.update(theirs)
            elif isinstance(mine, Histogram | Apart | Extremes):
                mine.merge(theirs)
        for reason, names in other.broken_names.items():
            self.broken_names[reason] = [*self.broken_names.get(reason, []), *names][:NAMES]
        self.labels = Counter(dict(self.labels.most_common(LABELS)))


def count_rows(source: Source, rows: range, wish: Wish, first: int) -> Counts:
    """The counts of some rows of a source; `first` is added to their numbers where rows are named."""
    counts, indices, digests, hashes, texts = Counts(), list[int](), list[int](), list[int](), list[int]()
    for row in rows:
        counts.rows += 1
        try:
            example = source.example(row)
            data = source.encoded(row)
        except BrokenExample as reason:
            counts.broken[str(reason)] += 1
            names = counts.broken_names.setdefault(str(reason), [])
            if len(names) < NAMES:
                names.append(f"row {row}")
            continue
        if isinstance(source, Cleaned):
            counts.cleaned.update(source.latest)
        _count_image(counts, example, data, first + row)
        _count_texts(counts, example, wish)
        _count_regions(counts, example)
        if wish.duplicates:
            indices.append(first + row)
            digests.append(digest(example.image.numpy().tobytes() if data is None else data))
            hashes.append(perceptual_hash(example.image))
            texts += (digest(caption.text.encode()) for caption in example.captions)
    counts.indices = np.array(indices, np.int64)
    counts.digests, counts.hashes, counts.texts = (np.array(found, np.uint64) for found in (digests, hashes, texts))
    return counts


def digest(data: bytes) -> int:
    """64 bits: any two of a million different files share theirs by a chance of 3 in 100 million."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())


def _count_image(counts: Counts, example: Example, data: bytes | None, row: int) -> None:
    height, width = example.image.shape[1:]
    counts.width.add(width)
    counts.height.add(height)
    counts.aspect.add(width / height)
    counts.smallest.add(-min(width, height), row)
    counts.widest.add(width / height, row)
    counts.tallest.add(height / width, row)
    if data is not None:
        counts.bytes.add(len(data))
    counts.columns.update(name for name in example.extras)
    label = example.extras.get("label")
    if isinstance(label, str | int) and (len(counts.labels) < LABELS or str(label) in counts.labels):
        counts.labels[str(label)] += 1


def _count_texts(counts: Counts, example: Example, wish: Wish) -> None:
    counts.captions.add(len(example.captions))
    for caption in example.captions:
        counts.letters[caption.language].add(len(caption.text))
        counts.words[caption.language].add(len(caption.text.split()))
        counts.sources[caption.source] += 1
        if wish.pipeline is not None:
            counts.tokens[caption.language].add(len(wish.pipeline.ids(caption.text)))
        if wish.languages and (found := detect(caption.text)) is not None:
            counts.detected[caption.language, found] += 1


def _count_regions(counts: Counts, example: Example) -> None:
    height, width = example.image.shape[1:]
    counts.regions.add(len(example.regions))
    for region in example.regions:
        left, top, right, bottom = region.bbox
        counts.area.add(100 * (right - left) * (bottom - top) / (width * height))
        counts.box_aspect.add((right - left) / (bottom - top))
        if region.score is not None:
            counts.score.add(region.score)
        for language, phrase in region.phrases.items():
            counts.phrases[language].add(len(phrase))
