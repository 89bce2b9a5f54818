"""Training examples beside the score by which they are chosen: what a run's report shows of its curation."""

from collections.abc import Sequence
from dataclasses import dataclass

from opensiglip.data.fields.field import Visit
from opensiglip.reports.drawing import as_uri

COUNT = 12  # of each end


@dataclass(frozen=True)
class ScoredExample:
    """A training example as a step saw it."""

    image: str  # data URI
    caption: str
    language: str
    writer: str  # who wrote the caption: human, mt, synthetic, exchanged, ...
    score: float

    @classmethod
    def of(cls, visit: Visit, score: float) -> "ScoredExample":
        """Of a visit that has a caption."""
        assert visit.caption is not None
        return cls(as_uri(visit.image), visit.caption.text, visit.caption.language, visit.caption.source, score)


@dataclass(frozen=True)
class Chosen:
    """The examples of highest and of lowest score among `examples`, by the weights at a run's end."""

    examples: int
    method: str  # of --curate
    highest: Sequence[ScoredExample]
    lowest: Sequence[ScoredExample]
