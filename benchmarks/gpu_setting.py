"""What the parts of `opensiglip bench gpu` share: sizes, and what they write their findings into."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch

from benchmarks.case import Case
from benchmarks.goals import H200, mfu, reason
from benchmarks.measure import Row, Variant, compare
from opensiglip.models.sizes import architecture, head
from opensiglip.training.precision import multiply

OURS = "opensiglip"
UNKNOWN = "the system does not tell"


@dataclass(frozen=True)
class Setting:
    """Sizes, and how to measure."""

    sizes: tuple[str, ...]
    images: int
    batch: int
    vocabularies: tuple[int, int]
    pairs: int
    compile: bool
    workers: int | None
    rounds: int
    place: torch.device

    def case(self, size: str, vocabulary: int, images: int | None = None) -> Case:
        """A step in bf16, not compiled."""
        networks = architecture(size, None, text=True, decoder=True)
        return Case(networks, head(size), vocabulary, images or self.images, self.place, torch.bfloat16)


@dataclass
class Found:
    """What a part measured."""

    rows: list[Row] = field(default_factory=list)
    values: dict[str, float | str] = field(default_factory=dict)  # by goal; words where it could not be measured
    left_out: dict[str, str] = field(default_factory=dict)  # variants, and why
    why: str = ""  # the part ended early

    def value(self, goal: str) -> float | str:
        """What was measured for a goal, or why nothing was."""
        words = self.why or "; ".join(f"{name}: {why}" for name, why in self.left_out.items())
        return self.values.get(goal, words or "nothing to measure")

    @contextmanager
    def leaving_out(self, name: str) -> Iterator[None]:
        """Whatever goes wrong inside leaves that variant out: a peer must not end the measurement of all."""
        try:
            yield
        except Exception as error:
            self.left_out[name] = reason(error)

    def tried(self, name: str, make: Callable[[], Variant]) -> list[Variant]:
        """The variant under this name if it can be made and run, which also compiles it."""
        with self.leaving_out(name):
            variant = replace(make(), name=name)
            variant.run()
            return [variant]
        return []

    def timed(self, setting: Setting, case: str, variants: Sequence[Variant], peer: str = "") -> None:
        """Add a row for each variant; `peer`, or the first if that is left out, counts as 1."""
        names = [variant.name for variant in variants]
        if names:
            base = peer if peer in names else names[0]
            self.rows += compare(case, variants, base, setting.place, setting.rounds, torch.bfloat16)

    def fastest(self, prefix: str) -> Row | None:
        """Of the rows whose variants begin so."""
        return min((row for row in self.rows if row.variant.startswith(prefix)), key=lambda r: r.seconds, default=None)

    def ratio(self, one: Row | None, other: Row | None, peer: str) -> float | str:
        """The time of one as a multiple of the other's; or why that peer was left out."""
        if one is not None and other is not None:
            return one.seconds / other.seconds
        return (
            "; ".join(f"{name}: {why}" for name, why in self.left_out.items() if peer in name) or "nothing to compare"
        )

    def utilise(self, variants: Sequence[Variant], row: Row, place: torch.device) -> None:
        """The MFU of a row, of this device's product in the same minutes and of an H200's."""
        flop = next(variant.floor for variant in variants if variant.name == row.variant)
        self.values["mfu"] = mfu(flop, row.seconds, 1e9 * row.facts["GFLOP/s"])
        h200 = place.type == "cuda" and "H200" in torch.cuda.get_device_name()
        self.values["mfu, h200"] = mfu(flop, row.seconds, H200) if h200 else "this device is no H200"


@contextmanager
def exactly(place: torch.device) -> Iterator[None]:
    """Float32 products as they are inside; outside as TF32, as `train` sets it."""
    multiply("no", place)
    try:
        yield
    finally:
        multiply("bf16", place)
