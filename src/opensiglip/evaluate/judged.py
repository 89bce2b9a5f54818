"""Held-out examples as a model sees them, encoded once for all tasks."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm import tqdm

from opensiglip.data.example import BrokenExample, Example, Source
from opensiglip.errors import UserError
from opensiglip.evaluate.subject import Subject

BATCH = 64


@dataclass(frozen=True)
class Judged:
    """Examples in the subject's frame, and its features of them, on its device."""

    examples: list[Example]  # image and boxes in the frame; extras also `size`, (width, height) of the stored image
    tokens: Tensor  # [E, N, D] float32; N is 0 where they were not kept
    pooled: Tensor | None  # [E, D] float32; None where the model does not pool

    @property
    def languages(self) -> tuple[str, ...]:
        """Of the captions, in the order met."""
        return tuple(dict.fromkeys(caption.language for example in self.examples for caption in example.captions))


def look(subject: Subject, source: Source, count: int, *, tokens: bool = True, quiet: bool = True) -> Judged:
    """Encode the first `count` readable examples of a source, uncropped, squashed to the subject's square.

    Without `tokens` only the pooled features are kept. Raises UserError if no example can be read.
    """
    examples: list[Example] = []
    kept: list[Tensor] = []
    pooled: list[Tensor] = []
    with tqdm(total=min(count, len(source)), desc=f"encode {source.name}", unit="image", disable=quiet) as bar:
        for some in batches(readable(source, count)):
            framed = []
            for example in some:
                image, regions = subject.frame.apply(example, None)
                size = (example.image.shape[2], example.image.shape[1])
                framed.append(replace(example, image=image, regions=regions, extras=example.extras | {"size": size}))
            features = subject.see(torch.stack([example.image for example in framed]))
            examples += framed
            kept.append(features.tokens if tokens else features.tokens[:, :0])
            if features.pooled is not None:
                pooled.append(features.pooled)
            bar.update(len(some))
    if not examples:
        raise UserError(f"{source.name} has no example that can be read; `opensiglip data show` says why.")
    return Judged(examples, torch.cat(kept), torch.cat(pooled) if pooled else None)


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
