"""What a task is: a function from a subject and what it saw to figures and pictures."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor
from tqdm import tqdm

from opensiglip.data.example import Box, Source
from opensiglip.errors import UserError
from opensiglip.evaluation.encoded import Judged, look
from opensiglip.inference.subject import Subject

Item = TypeVar("Item")


class Impossible(UserError):
    """This task can't be done with this model or these examples; the message says what is missing, in a few words."""


@dataclass(frozen=True)
class Picture:
    """One example as the page shows it: what was asked, what the model answered, and what is true."""

    image: Tensor  # [3, H, W] uint8
    right: bool  # a hit or a miss
    asked: str = ""
    answers: tuple[str, ...] = ()  # the model's, best first
    truths: tuple[str, ...] = ()
    true_boxes: tuple[Box, ...] = ()  # in pixels of `image`
    found_boxes: tuple[Box, ...] = ()
    beside: tuple[Tensor, ...] = ()  # more images [3, H, W] uint8, such as maps


@dataclass(frozen=True)
class Findings:
    """A task's result. `figures` is plain JSON; one with an interval has its NAME_ci95 beside it (`measured`)."""

    figures: dict[str, Any]
    pictures: list[Picture] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)  # by figure, what its mean is taken over; set by `judge`


@dataclass(frozen=True)
class Probe:
    """How a decoder probe learns: steps, and the tasks it learns to write. Ours; SigLIP 2 (Sec. 3.4.1) refers alone."""

    steps: int = 1500
    tasks: tuple[str, ...] = ("cap", "aref", "gcap")


PROBE = Probe()


@dataclass
class Context:
    """What a task may use besides the held-out examples."""

    training: Source | None = None  # the training split: for probes and for blind baselines
    languages: tuple[str, ...] | None = None  # None: all that the examples have
    seed: int = 0
    train_count: int = 2000  # training examples that probes may see
    quiet: bool = True  # no progress bars
    trust: bool = False  # may Python files be opened that the model names, its own tasks'?
    probe: Probe = PROBE
    _trained: dict[str, Judged] = field(default_factory=dict)

    def trained(self, subject: Subject) -> Judged:
        """The training split as the subject sees it, encoded once. Raises Impossible where there is none."""
        if self.training is None:
            raise Impossible("no training split to fit a probe on")
        if subject.name not in self._trained:
            self._trained[subject.name] = look(subject, self.training, self.train_count, quiet=self.quiet)
        return self._trained[subject.name]

    def spoken(self, judged: Judged) -> tuple[str, ...]:
        """The languages to judge in: those asked for that the captions have."""
        return tuple(code for code in judged.languages if self.languages is None or code in self.languages)

    def bar(self, items: Iterable[Item], words: str, total: int | None = None) -> Iterable[Item]:
        """The items, with a progress bar."""
        return tqdm(items, desc=words, total=total, leave=False, disable=self.quiet or None)


Task = Callable[[Subject, Judged, Context], Findings]


def some_of_both(right: Sequence[bool], each: int = 6) -> list[int]:
    """Places of the first few hits and the first few misses: not chosen, so that the page shows what is usual."""
    hits = [place for place, one in enumerate(right) if one][:each]
    return hits + [place for place, one in enumerate(right) if not one][:each]
