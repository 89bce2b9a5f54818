"""At a run's end: which of its examples did it select most often, and which least?"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from opensiglip.data.example import BrokenExample
from opensiglip.data.loader import DataPlan
from opensiglip.reports.selected_examples import COUNT, SelectedExample, Selection
from opensiglip.training.cache_writer import framed
from opensiglip.training.curation.curator import Curator
from opensiglip.training.curation.tally import Counted


def extremes(curator: Curator, plan: DataPlan) -> Selection:
    """The ends of the curator's tally, whole in the frame; an example that can't be read now is left out."""
    most, least = curator.tally.ends(COUNT)
    return Selection(
        examples=curator.tally.examples,
        every=curator.tally.stride,
        method=curator.method,
        most=_shown(most, plan),
        least=_shown(least, plan),
    )


def _shown(ends: Sequence[Counted], plan: DataPlan) -> list[SelectedExample]:
    sources, found = [source.pictured for source in plan.sources], []
    starts = [0, *accumulate(len(source) for source in plan.sources)]
    for one in ends:
        number = bisect_right(starts, one.row) - 1
        example = framed(sources[number], one.row - starts[number], plan.frame)
        if not isinstance(example, BrokenExample) and example.captions:
            found.append(SelectedExample.of(example, one.selected, one.seen, one.score))
    return found
