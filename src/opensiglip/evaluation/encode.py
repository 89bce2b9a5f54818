"""Held-out examples as a model encodes them, once for all benchmarks."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, islice

import numpy as np
import torch
from torch import Tensor

from opensiglip.data.example import Example, Region, Source, reason_of
from opensiglip.data.fields.frame import Geometry
from opensiglip.errors import UserError
from opensiglip.inference.predictor import Predictor
from opensiglip.progress import progress
from opensiglip.types import Features

BATCH = 64


@dataclass(frozen=True)
class EncodedExamples:
    """Examples in the model's frame, and its features of them, on its device."""

    examples: list[Example]  # image and boxes in the frame; extras also `size`, (width, height) of the stored image
    tokens: Tensor  # [E, N, D] float32; N is 0 where they were not kept
    pooled: Tensor | None  # [E, D] float32; None where the model does not pool
    valid: Tensor | None = None  # [E, N] bool; None where no token is padding

    def valid_at(self, places: Sequence[int] | Tensor) -> Tensor | None:
        """`valid` of the examples at these places."""
        return None if self.valid is None else self.valid[places]

    def size(self, place: int) -> tuple[int, int]:
        """Width and height of an example's image in the frame: what its boxes are measured by."""
        height, width = self.examples[place].image.shape[-2:]
        return width, height

    @property
    def features(self) -> Features:
        """Those of all examples."""
        return Features(self.pooled, self.tokens, self.valid)

    @property
    def languages(self) -> tuple[str, ...]:
        """Of the captions, in the order met."""
        return tuple(dict.fromkeys(caption.language for example in self.examples for caption in example.captions))

    @property
    def referable_regions(self) -> list[tuple[int, Region]]:
        """Every region with one box and a phrase, with its example's place."""
        return [
            (place, region)
            for place, example in enumerate(self.examples)
            for region in example.regions
            if region.is_referable
        ]


def encode_examples(
    model: Predictor, source: Source, count: int, *, tokens: bool = True, quiet: bool = True
) -> EncodedExamples:
    """Encode `count` readable examples of a source (`sample_order`), uncropped, in the model's frame.

    Without `tokens` only the pooled features are kept. Raises UserError if no example can be read.
    """
    examples: list[Example] = []
    kept: list[Tensor] = []
    pooled: list[Tensor] = []
    valid: list[Tensor] = []
    total = min(count, len(source))
    with progress(total=total, desc=f"encode {source.name}", unit="image", show=not quiet) as bar:
        framed = framed_examples(source, model.frame, count)
        while some := list(islice(framed, BATCH)):
            features = model.encode([example.image for example in some])
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
    return EncodedExamples(examples, torch.cat(kept), *both)


def sample_order(source: Source, count: int) -> Iterator[int]:
    """Indices to read until `count` are readable: a spread over the whole source, then the rest for those that are not.

    Rows of a file may be sorted by class, so one is drawn from each `count`-th part of them; always the same ones. The
    first examples serve where the source is shuffled.
    """
    size = len(source)
    if source.shuffled or count >= size:
        return iter(range(size))
    edges = np.linspace(0, size, count + 1).astype(int)
    spread = np.random.default_rng(0).integers(edges[:-1], edges[1:]).tolist()
    taken = set(spread)
    return chain(spread, (index for index in range(size) if index not in taken))


def framed_examples(source: Source, frame: Geometry, count: int) -> Iterator[Example]:
    """`count` readable examples in the frame, in `sample_order`; threads read ahead while the model encodes."""

    def read(index: int) -> Example | None:
        try:
            example = source.example(index)
            image, regions = frame.apply(example, None)
        except Exception as error:
            reason_of(error)
            return None
        size = (example.image.shape[2], example.image.shape[1])
        return replace(example, image=image, regions=regions, extras=example.extras | {"size": size})

    indices = sample_order(source, count)
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


def readable_examples(source: Source, count: int) -> Iterator[Example]:
    """`count` examples of a source that can be read, in `sample_order`."""
    found = 0
    for index in sample_order(source, count):
        if found == count:
            return
        try:
            example = source.example(index)
        except Exception as error:
            reason_of(error)
            continue
        yield example
        found += 1
