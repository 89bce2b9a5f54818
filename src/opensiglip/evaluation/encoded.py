"""Held-out examples as a model sees them, encoded once for all tasks."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor
from tqdm import tqdm

from opensiglip.data.example import BrokenExample, Example, Source
from opensiglip.data.fields.frame import Geometry
from opensiglip.errors import UserError
from opensiglip.inference.subject import Subject

BATCH = 64


@dataclass(frozen=True)
class Judged:
    """Examples in the subject's frame, and its features of them, on its device."""

    examples: list[Example]  # image and boxes in the frame; extras also `size`, (width, height) of the stored image
    tokens: Tensor  # [E, N, D] float32; N is 0 where they were not kept
    pooled: Tensor | None  # [E, D] float32; None where the model does not pool
    valid: Tensor | None = None  # [E, N] bool; None where no token is padding

    def visible(self, places: Sequence[int] | Tensor) -> Tensor | None:
        """`valid` of the examples at these places."""
        return None if self.valid is None else self.valid[places]

    def size(self, place: int) -> tuple[int, int]:
        """Width and height of an example's image in the frame: what its boxes are measured by."""
        height, width = self.examples[place].image.shape[-2:]
        return width, height

    @property
    def languages(self) -> tuple[str, ...]:
        """Of the captions, in the order met."""
        return tuple(dict.fromkeys(caption.language for example in self.examples for caption in example.captions))


def look(subject: Subject, source: Source, count: int, *, tokens: bool = True, quiet: bool = True) -> Judged:
    """Encode the first `count` readable examples of a source, uncropped, in the subject's frame.

    Without `tokens` only the pooled features are kept. Raises UserError if no example can be read.
    """
    examples: list[Example] = []
    kept: list[Tensor] = []
    pooled: list[Tensor] = []
    valid: list[Tensor] = []
    with tqdm(total=min(count, len(source)), desc=f"encode {source.name}", unit="image", disable=quiet or None) as bar:
        for some in batches(framed(source, subject.frame, count)):
            features = subject.see([example.image for example in some])
            examples += some
            kept.append(features.tokens if tokens else features.tokens[:, :0])
            if features.pooled is not None:
                pooled.append(features.pooled)
            if features.valid is not None and tokens:
                valid.append(features.valid)
            bar.update(len(some))
    if not examples:
        raise UserError(f"{source.name} has no example that can be read; `opensiglip data show` says why.")
    both = (torch.cat(some) if some else None for some in (pooled, valid))
    return Judged(examples, torch.cat(kept), *both)


def framed(source: Source, frame: Geometry, count: int) -> Iterator[Example]:
    """The first `count` readable examples in the frame, in order; threads read ahead while the model encodes."""

    def read(index: int) -> Example | None:
        try:
            example = source.example(index)
        except BrokenExample:
            return None
        image, regions = frame.apply(example, None)
        size = (example.image.shape[2], example.image.shape[1])
        return replace(example, image=image, regions=regions, extras=example.extras | {"size": size})

    indices = iter(range(len(source)))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        ahead = deque(pool.submit(read, index) for index in islice(indices, min(count, 2 * BATCH)))
        found = 0
        while ahead and found < count:
            example = ahead.popleft().result()
            ahead.extend(pool.submit(read, index) for index in islice(indices, 1))
            if example is not None:
                found += 1
                yield example
        for future in ahead:
            future.cancel()


def readable(source: Source, count: int) -> Iterator[Example]:
    """The first `count` examples of a source that can be read."""
    found = 0
    for index in range(len(source)):
        if found == count:
            return
        try:
            yield source.example(index)
        except BrokenExample:
            continue
        found += 1


def batches(examples: Iterator[Example], size: int = BATCH) -> Iterator[list[Example]]:
    """The examples in lists of `size`, the last one shorter."""
    some: list[Example] = []
    for example in examples:
        some.append(example)
        if len(some) == size:
            yield some
            some = []
    if some:
        yield some
