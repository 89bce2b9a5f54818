"""`Encoded`: one batch as the towers see it. `Objective`: one term of a paper's loss. See docs/design.md."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from opensiglip.models.model import Model
from opensiglip.types import Batch, Features


class Encoded:
    """One batch as the towers see it: each view is encoded once, when an objective first asks for it."""

    def __init__(self, model: Model, batch: Batch) -> None:
        self.model, self.batch = model, batch
        self.passes: dict[str, Features] = {}

    def image(self, view: str = "image") -> Features:
        """The image tower's features of a batch field."""
        return self._once(f"image:{view}", lambda: self.model.vision(self[view]))

    def text(self, field: str = "text") -> Features:
        """The text tower's features of a batch field."""
        assert self.model.text is not None, "this recipe's architecture has no text tower"
        tower = self.model.text
        return self._once(f"text:{field}", lambda: tower(self[field]))

    def __getitem__(self, field: str) -> Tensor:
        if field not in self.batch:
            raise KeyError(f"an objective reads {field!r}; this recipe's batch has {sorted(self.batch)}")
        return self.batch[field]

    def _once(self, key: str, encode: Callable[[], Features]) -> Features:
        if key not in self.passes:
            self.passes[key] = encode()
        return self.passes[key]


class Objective(nn.Module, ABC):
    """One term of the loss, `weight * L`. It returns a *sum* over its live units; the learner divides by their number.

    The number comes from data alone and is the same on all ranks (their mean), so uneven counts stay exact.
    """

    name: str  # as logged: "loss/<name>"

    def __init__(self, *, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    @abstractmethod
    def live(self, batch: Batch) -> Tensor:
        """How many units of this batch count: a scalar, from data, without weights."""


class PerExample(Objective):
    """A term that each example has by itself."""

    @abstractmethod
    def forward(self, encoded: Encoded) -> Tensor:
        """The sum over this batch's live units."""


class Pairwise(Objective):
    """A term that compares examples with one another: features of each, and a pure comparison of all of them.

    Split so that a batch too large for one pass can be compared whole and encoded in parts (train/accumulate.py).
    """

    @abstractmethod
    def features(self, encoded: Encoded) -> tuple[list[Tensor], list[Tensor]]:
        """(per-example tensors [B, ...], tensors shared by all examples); gradients flow to the floating-point ones."""

    @abstractmethod
    def compare(self, rows: list[Tensor], shared: list[Tensor]) -> Tensor:
        """The sum over this batch's live units, given what `features` returned for all of it."""
