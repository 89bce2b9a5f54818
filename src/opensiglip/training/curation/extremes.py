"""At a run's end: which of its examples did it select most often, and which least?"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from opensiglip.data.example import reason_of
from opensiglip.data.loader import DataPlan
from opensiglip.reports.selected_examples import COUNT, SelectedExample, Selection
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
        try:
            example = sources[number].example(one.row - starts[number])
            image, regions = plan.frame.apply(example, None)
        except Exception as error:
            reason_of(error)  # raises what concerns the run
            continue
        if example.captions:
            framed = replace(example, image=image, regions=regions)
            found.append(SelectedExample.of(framed, one.selected, one.seen, one.score))
    return found
