"""An example: one image with its texts and boxes, as every source hands it over."""

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
    """A text of the whole image. `source` says who wrote it: "human", "mt" (machine translated), "synthetic", ...

    `weight`: how often a visit draws it, beside the others of the image in its language.
    """

    text: str
    language: str = "en"
    source: str = "human"
    weight: float = 1.0


@dataclass(frozen=True)
class Region:
    """A box, and what stands in it, in one or more languages. `n_boxes` > 1: the phrase names several boxes.

    `names`, where the source knows them: what kind of thing it is, whatever else a phrase says of it. `mask`: its place
    in the extra column "masks". `score`, 0 to 1: of the detector that found it; None where nobody says.
    """

    bbox: Box
    phrases: dict[str, str]  # language -> phrase
    n_boxes: int = 1
    names: dict[str, str] = field(default_factory=dict)  # language -> name
    mask: int | None = None
    score: float | None = None

    @property
    def is_referable(self) -> bool:
        """Has it one box and a phrase that names it, as a referring expression needs?"""
        return self.n_boxes == 1 and bool(self.phrases)


@dataclass(frozen=True)
class Example:
    """One row of a source, image decoded."""

    image: "Tensor"  # [3, H, W] uint8
    captions: tuple[Caption, ...]
    regions: tuple[Region, ...] = ()
    name: str = ""
    extras: dict[str, Any] = field(default_factory=dict)  # optional columns: label, groups, qa, ocr, masks, ...
    group: str = ""  # what image it shows: examples of one group are no negatives of each other; "": of no other


class BrokenExample(Exception):
    """This row can't be used; the message is the reason, in a few words that do not name the row (it is counted)."""


def reason_of(error: Exception) -> str:
    """Why a row can't be used: a BrokenExample's words; else what was raised and where, without the row's own values.

    "ValueError in outline.py:31". Raises `error` again where it is the run's affair: a UserError, or no memory left.
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
    languages: tuple[str, ...]  # those its captions come in, after --languages
    language_weights: tuple[float, ...] | None = None  # how often a visit asks for each; None: all as often
    skipped: Counter[str]  # rows and regions left out when the source was opened, by reason
    shuffled: ClassVar[bool] = False  # are the first examples as good a sample as any?
    weight: float | None = None  # its share of what is read, as the user gave it
    shards: Sequence[int] | None = None  # rows of each; None where rows are as cheap in any order
    lanes: int = 1  # shards to read side by side
    example_weights: "NDArray[np.float64] | None" = None  # how often an epoch has each row, on average; None: once
    fetches: bool = False  # are its shards fetched from elsewhere, so that it helps to know which come next?

    @abstractmethod
    def __len__(self) -> int:
        """How many examples there are in this split."""

    @property
    def epoch_rows(self) -> int:
        """How many rows an epoch reads: each once, or as often as `example_weights` say."""
        return len(self) if self.example_weights is None else max(1, round(float(self.example_weights.sum())))

    @abstractmethod
    def example(self, index: int, language: str | None = None) -> Example:
        """Example `index`; with `language`, only that language's texts where the example has it (else all it has).

        Raises BrokenExample if the row's image can't be read.
        """

    def encoded(self, index: int) -> bytes | None:
        """The image of example `index` as its file has it; None where the source has no file of it.

        Raises BrokenExample.
        """
        return None

    def group(self, index: int) -> str:
        """What image example `index` shows, without reading it: two of one group are the same image, or as good as."""
        return f"{self.name}/{index}"

    def prepare(self, indices: Sequence[int]) -> None:  # noqa: B027 - most sources have nothing to prepare
        """These examples will be asked for soon; fetching what they lie in may begin."""

    @abstractmethod
    def texts(self) -> Iterator[str]:
        """Captions and phrases to train a tokenizer on, in a fixed order; finite, images are not decoded."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Facts for `opensiglip data show` and model cards: what it is, counts, licence or origin where known."""

    def labels(self) -> Sequence[Any]:
        """The column `label` of each row, without decoding images; empty where the source does not know."""
        return ()
