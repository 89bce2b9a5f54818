"""What a benchmark is: a function from a model and held-out examples as it encodes them to metrics and samples."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor

from opensiglip.data.example import Box, Source
from opensiglip.errors import UserError
from opensiglip.evaluation.encode import EncodedExamples, encode_examples
from opensiglip.inference.predictor import Predictor
from opensiglip.models.sizes import Shape
from opensiglip.progress import progress

Item = TypeVar("Item")


class NotApplicable(UserError):
    """The benchmark can't be run on this model or these examples; the message says what is missing, in a few words."""


@dataclass(frozen=True)
class Sample:
    """One example to show: what was asked, what the model predicted, and the target."""

    image: Tensor  # [3, H, W] uint8
    correct: bool
    question: str = ""
    predictions: tuple[str, ...] = ()  # best first
    targets: tuple[str, ...] = ()
    target_boxes: tuple[Box, ...] = ()  # in pixels of `image`
    predicted_boxes: tuple[Box, ...] = ()
    images: tuple[Tensor, ...] = ()  # more images [3, H, W] uint8
    heat_maps: tuple[Tensor, ...] = ()  # numbers [H, W] over `image`
    class_maps: tuple[Tensor, ...] = ()  # int64 [H, W] over `image`; 0 is the ground, below 0 no class


@dataclass(frozen=True)
class BenchmarkResult:
    """`metrics` is plain JSON; one with an interval has NAME_ci95 and NAME_values beside it (metrics/intervals.py)."""

    metrics: dict[str, Any]
    samples: list[Sample] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)  # by metric, what its mean is taken over: set by `run`
    notes: list[str] = field(default_factory=list)  # what a reader of the metrics has to know, in sentences


@dataclass(frozen=True)
class ProbeConfig:
    """How a decoder probe learns: steps, and the tasks it learns to write. Ours; SigLIP 2 (Sec. 3.4.1) refers alone.

    smaller: shape of a second decoder, which learns the same; its metrics begin with "smaller_".
    """

    steps: int = 1500
    tasks: tuple[str, ...] = ("cap", "aref", "gcap")
    smaller: Shape | None = None


DEFAULT_PROBE = ProbeConfig()


@dataclass
class Context:
    """What a benchmark may use besides the held-out examples."""

    training: Source | None = None  # the training split: for probes and for blind baselines
    languages: tuple[str, ...] | None = None  # None: all that the examples have
    seed: int = 0
    train_count: int = 2000  # training examples that probes may see
    raw_class_names: bool = False  # prompts take class names as they stand, not in canonical form
    quiet: bool = True  # no progress bars
    trust: bool = False  # may Python files be opened that the model names, its own tasks'?
    probe: ProbeConfig = DEFAULT_PROBE
    rerank: Predictor | None = None  # chooses captions among a beam's
    _training_examples: dict[str, EncodedExamples] = field(default_factory=dict)

    def training_examples(self, model: Predictor) -> EncodedExamples:
        """The training split as the model encodes it, once. Raises NotApplicable where there is none."""
        if self.training is None:
            raise NotApplicable("no training split to fit a probe on")
        if model.name not in self._training_examples:
            encoded = encode_examples(model, self.training, self.train_count, quiet=self.quiet)
            self._training_examples[model.name] = encoded
        return self._training_examples[model.name]

    def caption_languages(self, examples: EncodedExamples) -> tuple[str, ...]:
        """The languages to judge in: those asked for that the captions have."""
        return tuple(code for code in examples.languages if self.languages is None or code in self.languages)

    def progress(self, items: Iterable[Item], words: str, total: int | None = None) -> Iterable[Item]:
        """The items, with a progress bar."""
        found: Iterable[Item] = progress(items, desc=words, total=total, leave=False, show=not self.quiet)
        return found


Benchmark = Callable[[Predictor, EncodedExamples, Context], BenchmarkResult]


def hits_and_misses(correct: Sequence[bool], each: int = 6) -> list[int]:
    """Places of the first few hits and the first few misses: not chosen, so that the page shows what is usual."""
    hits = [place for place, one in enumerate(correct) if one][:each]
    return hits + [place for place, one in enumerate(correct) if not one][:each]
