"""`opensiglip data stats`: one pass over all splits of a source, in processes, with its progress told."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from opensiglip.data.example import Source
from opensiglip.data.parallel import each
from opensiglip.data.stats.counts import Counts, Wish, count_rows
from opensiglip.data.stats.duplicates import Clusters, look_alikes, same_files
from opensiglip.progress import progress

STRETCH = 512  # rows that a process counts at a time
ARRAYS = ("indices", "digests", "hashes", "texts")


@dataclass(frozen=True)
class Stretch:
    """Up to 512 rows of one split; with a `sample`, so many of all rows, evenly spread."""

    sources: Sequence[Source]
    step: int
    wish: Wish

    def __call__(self, number: int) -> Counts:
        for first, source in zip(starts(self.sources), self.sources, strict=True):
            rows = range(0, len(source), self.step)
            count = -(-len(rows) // STRETCH)
            if number < count:
                return count_rows(source, rows[number * STRETCH : (number + 1) * STRETCH], self.wish, first)
            number -= count
        raise IndexError(number)


@dataclass(frozen=True)
class Statistics:
    """The counts of all splits, which rows are copies, and what it took. Rows are numbered on over the splits."""

    counts: Counts
    splits: dict[str, int]
    exact: Clusters
    near: Clusters
    plain: int  # images too plain for a hash of what is seen
    leaks: int  # held-out images that train has, too, exactly or nearly
    repeated_texts: int
    seconds: float
    peak_bytes: int | None  # of this process, or of the largest of its workers; None where the system does not tell

    def facts(self) -> dict[str, Any]:
        """Everything as JSON holds it."""
        counts, rows = self.counts, len(self.counts.indices)
        by_language = {"letters": counts.letters, "words": counts.words, "tokens": counts.tokens}
        return {
            "splits": self.splits,
            "rows_read": counts.rows,
            "broken": dict(counts.broken.most_common()),
            "broken_rows": counts.broken_names,
            "images": {name: getattr(counts, name).facts() for name in ("width", "height", "aspect", "bytes")},
            "captions": {
                "of_an_image": counts.captions.facts(),
                "by_source": dict(counts.sources.most_common()),
                **{name: {code: h.facts() for code, h in of.items()} for name, of in by_language.items() if of},
                "repeated": self.repeated_texts,
            },
            "languages_detected": {f"{given} as {found}": n for (given, found), n in counts.detected.most_common()},
            "regions": {
                "of_an_image": counts.regions.facts(),
                "area_percent": counts.area.facts(),
                "aspect": counts.box_aspect.facts(),
                "score": counts.score.facts(),
                "phrase_letters": {code: histogram.facts() for code, histogram in counts.phrases.items()},
            },
            "cleaned": dict(counts.cleaned.most_common()),
            "columns": dict(counts.columns.most_common()),
            "labels": dict(counts.labels.most_common()),
            "duplicates": {
                "compared": rows,
                "exact": self.exact.repeated,
                "near": self.near.repeated,
                "near_is_complete": self.near.complete,
                "too_plain_to_tell": self.plain,
                "held_out_that_train_has": self.leaks,
            },
            "seconds": self.seconds,
            "peak_bytes": self.peak_bytes,
        }


def collect(splits: dict[str, Source], wish: Wish, sample: int | None, workers: int) -> Statistics:
    """Count the rows of every split, or of `sample` rows evenly spread. Raises UserError."""
    began, sources = time.perf_counter(), list(splits.values())
    total = sum(map(len, sources))
    step = 1 if sample is None else max(1, total // sample)
    sizes = [len(range(0, len(source), step)) for source in sources]
    counts, arrays = Counts(), {name: list[np.ndarray]() for name in ARRAYS}
    found = each(Stretch(sources, step, wish), sum(-(-size // STRETCH) for size in sizes), workers)
    with progress(total=sum(sizes), unit="row") as bar:
        for one in found:
            counts.merge(one)
            for name, parts in arrays.items():
                parts.append(getattr(one, name))
            bar.update(one.rows)
    for name, parts in arrays.items():
        setattr(counts, name, np.concatenate(parts) if parts else getattr(counts, name))
    exact, (near, plain) = same_files(counts.digests), look_alikes(counts.hashes)
    ends = np.array(starts(sources)[1:])
    numbers = np.searchsorted(ends, counts.indices, side="right")  # of the split of each
    trained = np.array([name == "train" for name in splits])[numbers]
    return Statistics(
        counts,
        {name: len(source) for name, source in splits.items()},
        exact,
        near,
        plain,
        leaks(trained, exact, near),
        len(counts.texts) - len(np.unique(counts.texts)),
        time.perf_counter() - began,
        peak_bytes(),
    )


def peak_bytes() -> int | None:
    """The most memory that this process, or the largest of those that it started, has held."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return max(peaks) * (1 if sys.platform == "darwin" else 1024)


def leaks(trained: np.ndarray, exact: Clusters, near: Clusters) -> int:
    """Rows out of train that are of a cluster with one in train."""
    found = np.zeros(len(trained), bool)
    for clusters in (exact, near):
        found |= ~trained & np.isin(clusters.labels, clusters.labels[trained])
    return int(found.sum())


def starts(sources: Sequence[Source]) -> list[int]:
    """The number of each split's first row, where all are numbered on."""
    return [sum(map(len, sources[:at])) for at in range(len(sources))]
