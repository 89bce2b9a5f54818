"""`Encoded`: one batch with its features. `Objective`: one term of a paper's loss. See docs/design.md."""

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

Notes = dict[str, Tensor]  # by "OBJECTIVE/NAME": scalars and vectors to average over parts and ranks


def unit(x: Tensor) -> Tensor:
    """Rows [..., D] of length 1, in float32 at least."""
    return F.normalize(x.float() if x.itemsize < 4 else x, dim=-1)


class Encoded:
    """One batch with its features: each view is encoded once, when an objective first asks for it."""

    def __init__(
        self, model: Model, batch: Batch, teacher: Ema | None = None, passes: dict[str, Features] | None = None
    ) -> None:
        """`passes`: features that are already computed, by key, such as "image:local"."""
        self.model, self.batch, self.ema = model, batch, teacher
        self.passes = dict(passes or {})
        self.notes: Notes = {}  # values of this step that objectives pass to `after_step`

    def image(self, view: str = "image") -> Features:
        """The image tower's features of a batch field: patches, [B, 3, H, W], or [B, V, 3, H, W] as B * V images.

        If the batch has a field "<view>_kept" [B, V, K], the tower reads only the patches with these indices.
        """

        def encode() -> Features:
            kept = self.batch.get(f"{view}_kept")
            only = {} if kept is None else {"kept": kept.flatten(0, 1)}
            features: Features = self.model.vision(self._pixels(view), **only)
            return features

        return self._once(f"image:{view}", encode)

    def masked(self, view: str, token: Tensor) -> Features:
        """Like `image`, with `token` in place of the patches at the batch field "mask_indices" [B, M]."""
        return self._once(f"masked:{view}", lambda: self.model.vision(self._pixels(view), self["mask_indices"], token))

    def teacher(self, view: str) -> Features:
        """The teacher's features of a batch field, without gradient: of the EMA tower, or of the student's if none."""

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
        """The text tower's features of a batch field [B, L], or [B, K, L] as B * K texts."""

        def encode() -> Features:
            assert self.model.text is not None, "this recipe's architecture has no text tower"
            return self.model.text(TowerStates.of(self.batch, field) or self[field].flatten(0, -2))

        return self._once(f"text:{field}", encode)

    def pair(self, text: str = "text") -> tuple[Tensor, Tensor]:
        """Unit embeddings of the images and of the texts in a field, in float32 at least."""
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
    """A health metric of an objective for the log; `alarm` states what is wrong at this step.

    After `warn` steps in a row with an alarm a warning is printed and no checkpoint replaces the last good one; after
    `stop` steps the run ends. With `stop` None there is only the warning, and checkpoints are saved.
    """

    name: str  # as logged
    value: float
    alarm: str | None = None  # cause and effect, for one sentence
    mend: str = "another --lr"  # the change to resume with
    warn: int = 20
    stop: int | None = 200


class Objective(nn.Module, ABC):
    """One term of the loss, `weight * L`, active from the fraction `start` of training on.

    It returns a *sum* over its live units. The learner divides by their number, which depends on the data only and is
    the same on all ranks (their mean), so uneven counts stay exact. The weights and buffers of an objective are those
    that only training needs: they are trained, averaged over ranks, saved and resumed with the rest.
    """

    name: str  # as logged: "loss/<name>"
    teacher: Momentum | None = None  # momentum of the EMA teacher; None if the term needs no teacher
    generates: str = ""  # the flag by which it writes texts while training; sharded ranks would wait for one another

    def __init__(self, *, weight: float = 1.0, start: float = 0.0) -> None:
        super().__init__()
        self.weight, self.start = weight, start

    def check(self, architecture: Architecture) -> None:
        """Raises UserError if the term cannot be computed with these networks. Called before a run writes anything."""

    def build(self, pipeline: TextPipeline, architecture: Architecture) -> None:
        """Create weights that depend on tokenizer and networks. Called before the optimizer is made."""

    def initialise(self, model: Model, batch_size: int, loaded: Collection[str]) -> None:
        """Set the initial values of model weights that this term determines. Called before a run's first step.

        `loaded`: names of the model's weights that were loaded from a checkpoint.
        """

    @abstractmethod
    def live(self, batch: Batch) -> Tensor:
        """The number of units of this batch that count: a scalar, computed from data without weights."""

    def constrain(self, model: Model) -> None:
        """Restrict the model's weights to the range that this term allows. Called after each optimizer step."""

    def after_step(self, notes: Notes) -> None:
        """Update state that is not learned by gradient. Called after each optimizer step once the term is active.

        `notes` are those of the step, averaged over parts and ranks.
        """

    def readings(self) -> dict[str, Reading]:
        """Explanations of its curves for the report, by name in the log: "loss/NAME", and its signals."""
        return {}

    def health(self, notes: Notes) -> list[Signal]:
        """Signals for the log in addition to its scalar notes, and their alarms."""
        return []


class PerExample(Objective):
    """A term that is a sum over single examples."""

    @abstractmethod
    def forward(self, encoded: Encoded) -> Tensor:
        """The sum over this batch's live units."""


class Pairwise(Objective):
    """A term that compares examples with one another: features of each example, and a pure function of all features.

    The split allows a batch too large for one pass to be encoded in parts and compared whole (training/accumulate.py).
    """

    @abstractmethod
    def features(self, encoded: Encoded) -> tuple[list[Tensor], list[Tensor]]:
        """(per-example tensors [B, ...], tensors shared by all examples). Floating-point ones receive gradients."""

    @abstractmethod
    def compare(self, rows: list[Tensor], shared: list[Tensor]) -> Tensor:
        """The sum over this batch's live units, given the output of `features` for the whole batch."""
