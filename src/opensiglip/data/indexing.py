"""`opensiglip data index`: the indexes of all tars of a source, made side by side before a run asks for them."""

import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from opensiglip.data.parallel import each
from opensiglip.data.sources.shards import find_shards
from opensiglip.data.sources.spec import parse_spec, split_weight
from opensiglip.data.sources.tar import open_index
from opensiglip.errors import UserError
from opensiglip.progress import progress


@dataclass(frozen=True)
class Indexed:
    """What was found: tars, their samples, bytes and what their indexes leave out; and the seconds it took."""

    tars: int
    samples: int
    bytes: int
    skipped: Counter[str]
    seconds: float

    def __str__(self) -> str:
        pace = self.bytes / 1e6 / max(self.seconds, 1e-9)
        lines = [
            f"{self.tars:,} tars, {self.samples:,} samples, {self.bytes / 1e6:,.1f} MB "
            f"in {self.seconds:.2f} s ({pace:,.0f} MB/s)"
        ]
        return "\n".join([*lines, *(f"left out: {reason}: {count:,}" for reason, count in self.skipped.most_common())])


def make_indexes(source: str, workers: int) -> Indexed:
    """Index every tar of a source that has no index of its present size and time. Raises UserError."""
    spec = parse_spec(split_weight(source)[0], ("tar",))
    files = find_shards(spec, ".tar")
    if other := [file for file in files if file.suffix != ".tar"]:
        raise UserError(f"{other[0]} is not a tar; only tars need an index.")
    began = time.perf_counter()
    samples, size, skipped = 0, 0, Counter[str]()
    found = each(partial(index_one, files), len(files), workers)
    for facts in progress(found, total=len(files), unit="tar"):
        samples, size = samples + facts[1], size + facts[0]
        skipped.update(facts[2])
    return Indexed(len(files), samples, size, skipped, time.perf_counter() - began)


def index_one(files: list[Path], number: int) -> tuple[int, int, dict[str, int]]:
    """Bytes of a tar, its samples, and what its index leaves out. Raises UserError."""
    (size, _), samples, skipped = open_index(files[number])
    return size, samples, skipped
