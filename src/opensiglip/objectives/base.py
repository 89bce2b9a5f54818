"""`Encoded`: one batch as the towers see it. `Objective`: one term of a paper's loss. See docs/design.md."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opensiglip.data.text import TextPipeline
from opensiglip.models.ema import Ema, Momentum
from opensiglip.models.model import Model
from opensiglip.models.sizes import Architecture
from opensiglip.types import Batch, Features, Patches, Reading, TowerStates, pixels

Notes = dict[str, Tensor]  # "<objective>/<what>": numbers and vectors that are averaged over parts and ranks


def unit(x: Tensor) -> Tensor:
    """Rows [..., D] of length 1, in float32 at least."""
    return F.normalize(x.float() if x.itemsize < 4 else x, dim=-1)


class Encoded:
    """One batch as the towers see it: each view is encoded once, when an objective first asks for it."""

    def __init__(
        self, model: Model, batch: Batch, teacher: Ema | None = None, passes: dict[str, Features] | None = None
    ) -> None:
        """`passes`: what is already encoded, by what would be asked, such as "image:local"."""
        self.model, self.batch, self.ema = model, batch, teacher
        self.passes = dict(passes or {})
        self.notes: Notes = {}  # what objectives remember of this step, for after it

    def image(self, view: str = "image") -> Features:
        """The image tower's features of a batch field [B, 3, H, W], of [B, V, 3, H, W] as B * V images, of patches.

        Where the batch has a field "<view>_kept" [B, V, K], those of the patches that it names.
        """

        def encode() -> Features:
            kept = self.batch.get(f"{view}_kept")
            only = {} if kept is None else {"kept": kept.flatten(0, 1)}
            features: Features = self.model.vision(self._pixels(view), **only)
            return features

        return self._once(f"image:{view}", encode)

    def masked(self, view: str, token: Tensor) -> Features:
        """The same with `token` in the place of the patches that the batch field "mask_indices" [B, M] names."""
        return self._once(f"masked:{view}", lambda: self.model.vision(self._pixels(view), self["mask_indices"], token))

    def teacher(self, view: str) -> Features:
        """The teacher's features of a batch field, of its EMA tower or without one of the student's; no gradient."""

        @torch.no_grad()
        def encode() -> Features:
            student = None if f"{view}_kept" in self.batch else self.passes.get(f"image:{view}")  # of all patches
            if self.ema is None and student is not None:
                pooled, tokens, valid = student
                return Features(None if pooled is None else pooled.detach(), tokens.detach(), valid)
            features: Features = (self.model.vision if self.ema is None else self.ema)(self._pixels(view))
            return features

        return self._once(f"teacher:{view}", encode)

    def text(self, field: str = "text") -> Features:
        """The text tower's features of a batch field [B, L], of [B, K, L] as B * K texts."""

        def encode() -> Features:
            assert self.model.text is not None, "this recipe's architecture has no text tower"
            return self.model.text(TowerStates.of(self.batch, field) or self[field].flatten(0, -2))

        return self._once(f"text:{field}", encode)

    def pair(self, text: str = "text") -> tuple[Tensor, Tensor]:
        """Embeddings of length 1 of the images and of a field's texts, in float32 at least."""
        image, texts = self.image().pooled, self.text(text).pooled
        assert image is not None and texts is not None
        return unit(image), unit(texts)

    def __getitem__(self, field: str) -> Tensor:
        if field not in self.batch:
            raise KeyError(f"an objective reads {field!r}; this recipe's batch has {sorted(self.batch)}")
        return self.batch[field]

    def _pixels(self, view: str) -> Tensor | Patches | TowerStates:
        return pixels(self.batch if f"{view}_states" in self.batch else {view: self[view]} | self.batch, view)

    def _once(self, key: str, encode: Callable[[], Any]) -> Features:
        if key not in self.passes:
            self.passes[key] = encode()
        return self.passes[key]


@dataclass(frozen=True)
class Signal:
    """A number that says how an objective is doing, for the log; with `alarm`, what is wrong with it at this step.

    `warn` steps in a row with an alarm are a warning, and no checkpoint replaces the last good one; `stop` end the run.
    With `stop` None it is left at the warning, and checkpoints are saved.
    """

    name: str  # as logged
    value: float
    alarm: str | None = None  # cause and effect, for one sentence
    mend: str = "another --lr"  # what to resume with
    warn: int = 20
    stop: int | None = 200


class Objective(nn.Module, ABC):
    """One term of the loss, `weight * L` from the share `start` of training on.

    It returns a *sum* over its live units; the learner divides by their number, which comes from data alone and is the
    same on all ranks (their mean), so uneven counts stay exact. Weights and buffers of an objective are what only
    training needs: they are trained, averaged over ranks, saved and resumed with the rest.
    """

    name: str  # as logged: "loss/<name>"
    teacher: Momentum | None = None  # of the EMA teacher that it compares with; None: it has no use for one

    def __init__(self, *, weight: float = 1.0, start: float = 0.0) -> None:
        super().__init__()
        self.weight, self.start = weight, start

    def build(self, pipeline: TextPipeline, architecture: Architecture) -> None:
        """Once tokenizer and networks are known, before the optimizer is made: create what depends on them."""

    def initialise(self, model: Model, batch_size: int, loaded: Collection[str]) -> None:
        """Before a run's first step: set weights of the model that start as this term says.

        `loaded`: names of the model's weights that a checkpoint has brought.
        """

    @abstractmethod
    def live(self, batch: Batch) -> Tensor:
        """How many units of this batch count: a scalar, from data, without weights."""

    def constrain(self, model: Model) -> None:
        """After the optimizer's step: bring the model's weights back to where this term allows them."""

    def after_step(self, notes: Notes) -> None:
        """After each optimizer step since it began: update what is learned otherwise than by gradient.

        `notes` are the step's, averaged over parts and ranks.
        """

    def readings(self) -> dict[str, Reading]:
        """How its curves are read, by the name in the log: "loss/NAME", and its signals."""
        return {}

    def health(self, notes: Notes) -> list[Signal]:
        """Numbers for the log beside its scalar notes, which are logged as they are, and alarms."""
        return []


class PerExample(Objective):
    """A term that each example has by itself."""

    @abstractmethod
    def forward(self, encoded: Encoded) -> Tensor:
        """The sum over this batch's live units."""


class Pairwise(Objective):
    """A term that compares examples with one another: features of each, and a pure comparison of all of them.

    Split so that a batch too large for one pass can be compared whole and encoded in parts (training/accumulate.py).
    """

    @abstractmethod
    def features(self, encoded: Encoded) -> tuple[list[Tensor], list[Tensor]]:
        """(per-example tensors [B, ...], tensors shared by all examples); gradients flow to the floating-point ones."""

    @abstractmethod
    def compare(self, rows: list[Tensor], shared: list[Tensor]) -> Tensor:
        """The sum over this batch's live units, given what `features` returned for all of it."""
