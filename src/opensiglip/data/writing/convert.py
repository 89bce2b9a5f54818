"""`opensiglip data convert` and `split`: a source written anew, example for example."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from opensiglip.data.example import BrokenExample, Source
from opensiglip.data.parallel import default_workers
from opensiglip.data.sources.registry import splits_of
from opensiglip.data.writing.formats import FORMATS
from opensiglip.data.writing.record import Picture, Record, record_of
from opensiglip.data.writing.shards import Done, Rows, write_shards
from opensiglip.errors import UserError

SAMPLE = 64  # examples that tell the size of all
VERSION = 1  # of what is written: a folder begun by another is not gone on with


@dataclass(frozen=True)
class Draw:
    """How `split` draws: shares of `val` and `test`, by the hash of what `by` names; equal ones stay together."""

    val: float
    test: float
    by: str  # "name", "image", or an optional column

    def split(self, record: Record) -> str:
        """The split of an example. Raises BrokenExample where it lacks the column."""
        place = int.from_bytes(hashlib.blake2b(self._word(record), digest_size=8).digest()) / 2**64
        return "val" if place < self.val else "test" if place < self.val + self.test else "train"

    def _word(self, record: Record) -> bytes:
        if self.by == "image":
            return record.image
        name = "image_id" if self.by == "name" and "image_id" in record.row else self.by
        value = record.row.get("key" if name == "name" else name)
        if value is None:
            raise BrokenExample(f"no {self.by} to split by")
        return str(value).encode(errors="surrogatepass")


@dataclass(frozen=True)
class Stretches:
    """The rows of each job: up to `rows` examples of one split, in order."""

    sources: dict[str, Source]
    rows: int
    picture: Picture
    draw: Draw | None

    def __call__(self, number: int) -> Rows:
        split, first, last = self.places[number]
        source = self.sources[split]
        for index in range(first, last):
            make = partial(record_of, source, index, self.picture)
            if self.draw is None:
                yield split, make
            else:
                yield from self._drawn(self.draw, split, make)

    @cached_property
    def places(self) -> list[tuple[str, int, int]]:
        """Split, first row and the row after the last, of each job."""
        return [
            (split, first, min(first + self.rows, len(source)))
            for split, source in self.sources.items()
            for first in range(0, len(source), self.rows)
        ]

    def _drawn(self, draw: Draw, split: str, make: partial[Record]) -> Iterator[tuple[str, Any]]:
        try:
            record = make()
            yield draw.split(record), lambda: record
        except BrokenExample as reason:
            why = str(reason)
            yield split, partial(broken, why)


def broken(why: str) -> Record:
    raise BrokenExample(why)


def convert(
    spec: str,
    out: Path,
    *,
    to: str,
    shard_mb: float = 500,
    resize: int | None = None,
    quality: int = 90,
    workers: int | None = None,
    draw: Draw | None = None,
) -> Done:
    """Write every split of a source to `out`, in shards of about `shard_mb` MB; gone on with where it was ended.

    Without `resize` the images' files are copied byte for byte, and what is read back is equal in every field, but for
    `group`, which names the place. Raises UserError.
    """
    if to not in FORMATS:
        raise UserError(f"--to {to!r} is unknown; give {', '.join(FORMATS)}.")
    if not shard_mb > 0:
        raise UserError(f"--shard-mb {shard_mb} is out of range; give a number of more than 0.")
    picture = checked_picture(resize, quality)
    sources = splits_of(spec)
    plan: dict[str, Any] = {"version": VERSION, "source": spec, "to": to, "shard_mb": shard_mb}
    plan |= {"splits": {split: len(source) for split, source in sources.items()}, "picture": asdict(picture)}
    plan |= {"draw": None if draw is None else asdict(draw)}
    mean = mean_bytes(next(iter(sources.values())), picture)
    stretches = Stretches(sources, max(1, int(shard_mb * 1e6 / mean)), picture, draw)
    counts = [last - first for _, first, last in stretches.places]
    return write_shards(out, plan, to, stretches, counts, default_workers() if workers is None else workers)


def checked_picture(resize: int | None, quality: int) -> Picture:
    """Raises UserError for sizes and qualities that are none."""
    if resize is not None and not 1 <= resize <= 8192:
        raise UserError(f"--resize {resize} is out of range; give 1 to 8192 pixels of the shorter side.")
    if not 1 <= quality <= 100:
        raise UserError(f"--quality {quality} is out of range; give 1 to 100.")
    return Picture(resize, quality)


def mean_bytes(source: Source, picture: Picture) -> float:
    """Bytes of an example's image, of a sample evenly spread."""
    sizes = []
    for number in range(min(SAMPLE, len(source))):
        try:
            record = record_of(source, number * len(source) // min(SAMPLE, len(source)), picture)
        except BrokenExample:
            continue
        sizes.append(len(record.image) + 600)  # two or three headers and the row
    return sum(sizes) / len(sizes) if sizes else 1e5


def sentence(done: Done, out: Path) -> str:
    """What was written, to print."""
    rows = ", ".join(f"{split} {count:,}" for split, count in sorted(done.rows.items())) or "no row"
    lines = [f"{out}: {rows}; {done.files:,} files, {done.bytes / 1e6:,.1f} MB; checksums in SHA256SUMS"]
    lines += [f"left out: {reason}: {count:,}" for reason, count in done.broken.most_common()]
    lines += [f"lost: {reason}: {count:,}" for reason, count in done.lost.most_common()]
    return "\n".join(lines)


def check_draw(val: float, test: float, by: str, columns: Sequence[str]) -> Draw:
    """Raises UserError for shares that are none, or a column that is not known."""
    if not (0 <= val < 1 and 0 <= test < 1 and 0 < val + test < 1):
        raise UserError(
            f"--val {val} --test {test} are not fractions; give two of at least 0 whose sum is above 0 and below 1."
        )
    if by not in ("name", "image", *columns):
        raise UserError(f"--by {by!r} is unknown; give name, image, or a column: {', '.join(columns)}.")
    return Draw(val, test, by)
