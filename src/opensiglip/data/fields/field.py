"""From an example to the fields of a batch. All randomness of training is drawn here, from one generator per visit."""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opensiglip.data.example import Caption, Example, Region
from opensiglip.data.fields.frame import Geometry, Window
from opensiglip.data.text import TextPipeline
from opensiglip.types import Batch


@dataclass(frozen=True)
class Visit:
    """One example as one training step sees it: image and boxes after the geometric transforms, one caption drawn."""

    example: Example
    image: Tensor  # [3, h, w] uint8
    regions: tuple[Region, ...]  # boxes in pixels of `image`
    caption: Caption | None
    window: Window | None = None  # the part of the example's image that is seen; None: all of it
    group: int | None = None  # visits of one group show the same image; None: nothing is known of that
    source: str = ""  # the name of the source that it was read from
    mirrored: bool = False  # left for right, `image` and `regions` too
    row: int | None = None  # its example's number among those of all of the run's sources; None: of no run

    @classmethod
    def draw(cls, example: Example, frame: Geometry, rng: np.random.Generator, language: str | None) -> "Visit":
        """A visit of `example` in a frame; captions of `language` are preferred."""
        window = frame.window(example.image, rng)
        mirrored = frame.mirrors(example, rng)
        image, regions = frame.cut(example, window, mirrored)
        captions = [c for c in example.captions if c.language == language] or list(example.captions)
        caption = draw_caption(captions, rng) if captions else None
        return cls(example, image, regions, caption, window, group_id(example.group), mirrored=mirrored)

    @property
    def is_whole(self) -> bool:
        """Does `image` show all of the example's image, as it is?"""
        return not self.mirrored and self.window in (None, (0, 0, *self.example.image.shape[-2:]))

    @property
    def other_texts(self) -> list[str]:
        """The example's other captions in the language of the visit's."""
        first = self.caption
        return [c.text for c in self.example.captions if first and c is not first and c.language == first.language]

    def point(self, at: tuple[float, float]) -> tuple[float, float]:
        """A point x, y of the example's image in pixels of `image`, brought to its edge where it lies outside."""
        whole = self.example.image.shape[-2:]
        top, left, height, width = self.window or (0, 0, *whole)
        rows, columns = self.image.shape[-2:]
        x, y = (at[0] - left) * columns / width, (at[1] - top) * rows / height
        x = columns - x if self.mirrored else x
        return min(max(x, 0.0), float(columns)), min(max(y, 0.0), float(rows))


def draw_caption(captions: Sequence[Caption], rng: np.random.Generator) -> Caption:
    """One of the captions, each as often as its weight says."""
    if all(caption.weight == 1 for caption in captions):
        return captions[int(rng.integers(len(captions)))]
    ends = np.cumsum([caption.weight for caption in captions])
    return captions[int(np.searchsorted(ends[:-1], rng.random() * ends[-1], side="right"))]


def group_id(group: str) -> int | None:
    """A group's name as a number of 64 bits, the same in every process; None without a name."""
    if not group:
        return None
    digest = hashlib.blake2b(group.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)


class Field(ABC):
    """What a recipe draws from each visit and how a batch holds it, from the share `start` of training to `end`.

    Fields draw in the recipe's order from one generator, so one that begins late stands last.
    """

    start: float = 0.0
    end: float = math.inf
    by_row: bool = True  # has each tensor of its batch a row per example, so that examples can be chosen from it?

    def drawn_at(self, progress: float) -> bool:
        """Whether a step at the share `progress` of training has it."""
        return self.start <= progress < self.end

    def resized(self, resolution: int) -> "Field":
        """The same of images whose sides are so many pixels; itself where what it draws follows the visit's image."""
        return self

    @abstractmethod
    def draw(self, visit: Visit, rng: np.random.Generator, pipeline: TextPipeline) -> Any:
        """One example's part, every random choice made."""

    @abstractmethod
    def collate(self, drawn: Sequence[Any], pipeline: TextPipeline) -> Batch:
        """The batch's fields, from what `draw` gave for its examples."""


Drawn = tuple[np.ndarray, bool, int | None]  # a text as the batch holds it, whether there is one, the image's group


class Images(Field):
    """The plain view, as the frame batches it: image [B, 3, S, S] uint8, or with NaFlex a `Patches` of uint8.

    The loader makes pixels float in [-1, 1] on the device.
    """

    def __init__(self, frame: Geometry) -> None:
        self.frame = frame

    def draw(self, visit: Visit, rng: np.random.Generator, pipeline: TextPipeline) -> Tensor:
        return visit.image

    def collate(self, drawn: Sequence[Tensor], pipeline: TextPipeline) -> Batch:
        return self.frame.batch(drawn)


class Texts(Field):
    """text [B, L] int64, the visit's caption for the text tower; has_text [B] bool; group [B] int64.

    Rows of equal `group` show the same image, so none is the other's negative. There is no such field where nothing is
    known of that: then all rows differ.

    With `captions` k above 1 all three have B * k rows: for each image k different captions of the visit's language,
    the visit's first; where it has fewer, the last ones have no text.

    With `as_target`, also what predicting it needs (CoCa): text_weights [B, L] float32, 1/|y| on its tokens and eos,
    and text_scored [M], their places in the flattened texts.
    """

    def __init__(self, *, as_target: bool = False, captions: int = 1) -> None:
        self.as_target, self.captions = as_target, captions
        self.by_row = not as_target and captions == 1

    def draw(self, visit: Visit, rng: np.random.Generator, pipeline: TextPipeline) -> list[Drawn]:
        return [
            (self.read(visit, text or "", pipeline), text is not None, visit.group) for text in self._texts(visit, rng)
        ]

    def read(self, visit: Visit, text: str, pipeline: TextPipeline) -> np.ndarray:
        """What the batch holds of a text."""
        return pipeline.fixed(text)

    def _texts(self, visit: Visit, rng: np.random.Generator) -> list[str | None]:
        first = visit.caption
        if self.captions == 1:
            return [first.text if first else None]
        others = visit.other_texts
        drawn = [others[at] for at in rng.permutation(len(others))[: self.captions - 1]]
        found: list[str | None] = [first.text if first else None, *drawn]
        return found + [None] * (self.captions - len(found))

    def collate(self, drawn: Sequence[list[Drawn]], pipeline: TextPipeline) -> Batch:
        ids, has, groups = zip(*(row for rows in drawn for row in rows), strict=True)
        batch = self.batch(np.stack(ids)) | {"has_text": torch.tensor(has)}
        known = [group for group in groups if group is not None]
        if len(known) == len(groups):
            batch["group"] = torch.tensor(known)
        if not self.as_target:
            return batch
        real = (batch["text"] != pipeline.policy.pad_id) & batch["has_text"][:, None]
        weights = real / real.sum(1, keepdim=True).clamp(min=1)
        return batch | {"text_weights": weights, "text_scored": real.flatten().nonzero()[:, 0]}

    def batch(self, texts: np.ndarray) -> Batch:
        """The field of what `read` gave, stacked."""
        return {"text": torch.from_numpy(texts)}


class SecondTexts(Field):
    """second_text [B, L] int64: a synthetic caption, else another one than the visit's, else the same.    (TIPS)"""

    def draw(self, visit: Visit, rng: np.random.Generator, pipeline: TextPipeline) -> tuple[np.ndarray, bool]:
        choice = rng.random()
        language = visit.caption.language if visit.caption else None
        synthetic = visit.example.extras.get("captions_synthetic", ())
        others = [c for c in visit.example.captions if c != visit.caption and c.language == language]
        texts = [c for c in synthetic if c.language == language] or list(synthetic) or others
        caption = texts[int(choice * len(texts))] if texts else visit.caption
        return pipeline.fixed(caption.text if caption else ""), caption is not None

    def collate(self, drawn: Sequence[tuple[np.ndarray, bool]], pipeline: TextPipeline) -> Batch:
        return _texts("second_text", drawn)


def _texts(name: str, drawn: Sequence[tuple[np.ndarray, bool]]) -> Batch:
    ids, has = zip(*drawn, strict=True)
    return {name: torch.from_numpy(np.stack(ids)), f"has_{name}": torch.tensor(has)}
