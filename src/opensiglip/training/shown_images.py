"""The images that a source shows, by the keys under which a frozen tower's states of them are found."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

from opensiglip.data.example import Source, reason_of
from opensiglip.data.fields.frame import Geometry
from opensiglip.data.fingerprint import fingerprint
from opensiglip.data.sources.cached import broken_line, key_in, read_lines, to_line, write_lines
from opensiglip.data.sources.state_store import StoreWriter, key_of
from opensiglip.data.stats.duplicates import perceptual_hash

LOOKED_AT, LOOKED_AT_AFAR = 10_000, 64  # rows compared with an earlier run's; of a source that is fetched

Fact = tuple[int, int, int]  # height and width of an image as decoded, and its perceptual hash
Waiting = dict[bytes, tuple[Tensor, Fact]]  # images in the frame that are not encoded yet, by key


class ShownImages:
    """A key for each row, and a line for each: what is read of an example beside its states.

    The keys of a source of up to `LOOKED_AT` rows are made anew for each run. Of a larger one as many rows are looked
    at, spread over it; where they are as an earlier run found them, its lines hold for the others too.
    """

    def __init__(self, source: Source, frame: Geometry, root: Path) -> None:
        self.source, self.frame, self.lines = source, frame, list[bytes]()
        facts, count = repr([source.name, fingerprint(source), repr(frame)]), len(source)
        self.file = root / f"lines-{hashlib.sha256(facts.encode()).hexdigest()[:24]}.jsonl"
        most = min(count, LOOKED_AT_AFAR if source.fetches else LOOKED_AT)
        self.looked_at: list[int] = np.linspace(0, count - 1, most).astype(int).tolist()
        before = read_lines(self.file, count) if most < count else None
        if before is not None and any(key_in(before[index]) != self._key(index) for index in self.looked_at):
            before = None
        self.before = before
        self.keys = [self._key(index) if before is None else key_in(before[index]) for index in range(count)]

    def read(self, store: StoreWriter, waiting: Waiting) -> Iterator[None]:
        """Make the lines, and put images without states in `store` into `waiting`; a pause after each row."""
        before = self.before
        for index in () if before is None else self.looked_at:
            if before is not None and self.keys[index] in store and self._line(index, store, {}) != before[index]:
                before = None
        for index, key in enumerate(self.keys):
            if before is not None and key in store:
                self.lines.append(before[index])
            else:
                self.lines.append(self._line(index, store, waiting))
            yield

    def write(self) -> None:
        """The file of the lines."""
        write_lines(self.file, self.lines)

    def _line(self, index: int, store: StoreWriter, waiting: Waiting) -> bytes:
        key = self.keys[index]
        try:
            if key in waiting or key in store:
                height, width, seen = waiting[key][1] if key in waiting else store.fact(key)
                example = self.source.without_pixels(index, height, width)
                return to_line(example, self.frame.regions(example), key, seen)
            key = key or image_key(self.source, index)  # which raises again what it raised before
            example = self.source.example(index)
            image, regions = self.frame.apply(example, None)
            height, width = example.image.shape[-2:]
            fact = (height, width, perceptual_hash(image))
            line = to_line(example, regions, key, fact[-1])
        except Exception as error:  # whatever fails while a row is read is that row's
            return broken_line(reason_of(error), key)
        waiting[key] = image, fact
        return line

    def _key(self, index: int) -> bytes:
        try:
            return image_key(self.source, index)
        except Exception as error:
            reason_of(error)  # raises what concerns the run
            return b""


def image_key(source: Source, index: int) -> bytes:
    """A hash of an image's file, or of its pixels where the source has no file. Raises what reading it raises."""
    data = source.encoded(index)
    if data is None:
        image = source.example(index).image
        data = str(tuple(image.shape)).encode() + image.contiguous().numpy().tobytes()
    return key_of(data)
