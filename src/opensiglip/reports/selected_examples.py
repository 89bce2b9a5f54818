"""Training examples beside how often they were selected: what a run's report shows of its curation."""

from collections.abc import Sequence
from dataclasses import dataclass

from opensiglip.data.example import Example
from opensiglip.reports.drawing import as_uri

COUNT = 12  # of each end


@dataclass(frozen=True)
class SelectedExample:
    """A training example with its first caption."""

    image: str  # data URI
    caption: str
    captions: int  # that it has
    language: str
    writer: str  # who wrote the caption: human, mt, synthetic, exchanged, ...
    selected: int  # of the times that it was read
    seen: int
    score: float  # mean over these times

    @classmethod
    def of(cls, example: Example, selected: int, seen: int, score: float) -> "SelectedExample":
        """Of an example that has a caption, its image in the frame."""
        first = example.captions[0]
        count = len(example.captions)
        return cls(as_uri(example.image), first.text, count, first.language, first.source, selected, seen, score)


@dataclass(frozen=True)
class Selection:
    """The examples selected most and least often of `examples` that were read, `every` row of the data counted."""

    examples: int
    every: int
    method: str  # of --curate
    most: Sequence[SelectedExample]
    least: Sequence[SelectedExample]
