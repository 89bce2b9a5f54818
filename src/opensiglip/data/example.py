"""An example: one image with its texts and boxes. Every source returns examples."""

import traceback
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from opensiglip.errors import UserError

if TYPE_CHECKING:  # so that what reads flags need not wait for torch
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

Box = tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels of the example's image


@dataclass(frozen=True)
class Caption:
    """A text of the whole image. `source` is its origin: "human", "mt" (machine translated), "synthetic", ...

    `weight`: relative frequency with which a visit draws it among the image's texts in its language.
    """

    text: str
    language: str = "en"
    source: str = "human"
    weight: float = 1.0


@dataclass(frozen=True)
class Region:
    """A box with a phrase for its content in one or more languages. `n_boxes` > 1: the phrase names several boxes.

    `names`: the kind of object, if the source has it; a phrase may say more. `mask`: its index in the extra column
    "masks". `score`, 0 to 1: that of the detector that found the box, or None.
    """

    bbox: Box
    phrases: dict[str, str]  # language -> phrase
    n_boxes: int = 1
    names: dict[str, str] = field(default_factory=dict)  # language -> name
    mask: int | None = None
    score: float | None = None

    @property
    def is_referable(self) -> bool:
        """True if the phrase names exactly one box, as a referring expression must."""
        return self.n_boxes == 1 and bool(self.phrases)


@dataclass(frozen=True)
class Example:
    """One row of a source, image decoded."""

    image: "Tensor"  # [3, H, W] uint8
    captions: tuple[Caption, ...]
    regions: tuple[Region, ...] = ()
    name: str = ""
    extras: dict[str, Any] = field(default_factory=dict)  # optional columns: label, groups, qa, ocr, masks, ...
    group: str = ""  # key of the image: examples of one group are not negatives of each other; "": no group


class BrokenExample(Exception):
    """A row can't be used. The message is the reason in a few words, without the row's name, because it is counted."""


def reason_of(error: Exception) -> str:
    """The reason why a row can't be used: a BrokenExample's message, or type and place, without the row's values.

    Such as "ValueError in outline.py:31". Raises `error` again if it concerns the run: a UserError, or lack of memory.
    """
    if isinstance(error, UserError | MemoryError):
        raise error
    if isinstance(error, BrokenExample):
        return str(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {Path(place.filename).name}:{place.lineno}"


class Source(ABC):
    """An indexed set of examples: reading one twice gives the same example, in any process and any order."""

    name: str  # as the user wrote it
    languages: tuple[str, ...]  # languages of its captions, after --languages
    language_weights: tuple[float, ...] | None = None  # relative frequency of each in visits; None: all equal
    skipped: Counter[str]  # rows and regions left out when the source was opened, by reason
    shuffled: ClassVar[bool] = False  # True if the first examples are a random sample
    weight: float | None = None  # its share of the examples read, as given by the user
    shards: Sequence[int] | None = None  # rows of each; None if reading in any order costs the same
    lanes: int = 1  # shards to read in parallel
    example_weights: "NDArray[np.float64] | None" = None  # mean number of visits per epoch of each row; None: 1
    fetches: bool = False  # True if shards are fetched remotely, so that prefetching helps

    @abstractmethod
    def __len__(self) -> int:
        """The number of examples in this split."""

    @property
    def epoch_rows(self) -> int:
        """The number of rows per epoch: each once, or as often as `example_weights` say."""
        return len(self) if self.example_weights is None else max(1, round(float(self.example_weights.sum())))

    @abstractmethod
    def example(self, index: int, language: str | None = None) -> Example:
        """Example `index`. With `language`, only its texts in that language, or all of its texts if it has none.

        Raises BrokenExample if the row's image can't be read.
        """

    def without_pixels(self, index: int, height: int, width: int) -> Example:
        """Example `index`, whose image is known to have that size, with a blank one if that saves decoding it."""
        return self.example(index)

    def encoded(self, index: int) -> bytes | None:
        """The image of example `index` as encoded in its file; None if the source has no file for it.

        Raises BrokenExample.
        """
        return None

    def group(self, index: int) -> str:
        """The group of example `index`, without reading it: two examples of one group show the same image."""
        return f"{self.name}/{index}"

    @property
    def pictured(self) -> "Source":
        """The same examples with their pixels, which a cache's do not have."""
        return self

    def prepare(self, indices: Sequence[int]) -> None:  # noqa: B027 - most sources have nothing to prepare
        """Announce that these examples will be read soon, so that prefetching can start."""

    @abstractmethod
    def texts(self) -> Iterator[str]:
        """Captions and phrases to train a tokenizer on, in a fixed order; finite, images are not decoded."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Facts for `opensiglip data show` and model cards: description, counts, and licence or origin if known."""

    def labels(self) -> Sequence[Any]:
        """The column `label` of each row, without decoding images; empty if the source has none."""
        return ()
