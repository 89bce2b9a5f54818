"""At a run's end: which of its examples would be chosen first, and which last?"""

from collections import Counter
from dataclasses import replace

import torch

from opensiglip.data.loader import DataPlan, Steps
from opensiglip.models.model import Model
from opensiglip.reports.scored_examples import COUNT, Chosen, ScoredExample
from opensiglip.training.curation.curator import Curator
from opensiglip.training.curation.reference import Reference
from opensiglip.types import Batch

SAMPLE = 256  # examples that are scored


@torch.no_grad()
def extremes(
    curator: Curator, reference: Reference | None, model: Model, plan: DataPlan, step: int, device: torch.device
) -> Chosen:
    """Of the first `SAMPLE` examples that a step reads, the ends by s_ii: each pair's own score, by `model`."""
    steps, (frame, first, size) = Steps(plan), plan.step_slice(step)
    progress = plan.progress(step)
    fields, pipeline = [field for field in plan.fields if field.drawn_at(progress)], plan.pipeline_at(progress)
    rows = steps.rows(first, min(SAMPLE, size), Counter(), frame, fields, pipeline)
    batch: Batch = {}
    for index, field in enumerate(fields):
        batch |= field.collate([row[index] for row in rows], pipeline)
    batch = {name: values.to(device) for name, values in batch.items()}
    if reference is not None:
        batch = reference.embed(batch, device)
    scores = curator.scores(model, [batch], join=lambda values: values)
    own, valid = scores.own(), scores.valid.nonzero()[:, 0]
    order = valid[own[valid].argsort(descending=True)].tolist()
    lowest = order[COUNT:][-COUNT:][::-1]
    shown = Steps(replace(plan, sources=[source.pictured for source in plan.sources]))
    highest, low = (
        [ScoredExample.of(shown.visit(first + at, Counter(), frame), float(own[at])) for at in places]
        for places in (order[:COUNT], lowest)
    )
    return Chosen(len(order), curator.method, highest, low)
