"""`train`'s line on memory, before anything large is built: what the run needs and what the machine has."""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch

from opensiglip.data.loader import DataPlan
from opensiglip.errors import UserError
from opensiglip.objectives.distil import Distil
from opensiglip.training.curation.build import fields_beside
from opensiglip.training.curation.curator import Curator
from opensiglip.training.curation.reference import Reference
from opensiglip.training.planning.machines import free_memory
from opensiglip.training.planning.networks import meta_learner
from opensiglip.training.planning.plan import fullest, gib, mends
from opensiglip.training.planning.shapes import batch_shapes
from opensiglip.training.planning.step import Setting, held, tensors
from opensiglip.training.pretrained_towers import frozen_by_default
from opensiglip.training.resolve import Job
from opensiglip.training.stages import stage_starts


def memory_line(
    job: Job,
    data: DataPlan,
    device: torch.device,
    mixed: str,
    curating: Curator | None = None,
    references: Sequence[Reference] = (),
) -> str:
    """The estimate of the last stage, which holds most, beside what is free. Raises UserError where it is too large.

    Ranks of one machine share a CPU's memory.
    """
    config, read = job.config, data
    data = replace(data, batch_size=config.batch_size)  # what is left out has no gradient
    kind: Literal["cpu", "gpu"] = "cpu" if device.type == "cpu" else "gpu"
    shard = config.shard and data.ranks > 1
    setting = Setting(kind, mixed, data.ranks, data.parts, config.checkpointing, shard, config.optimizer)
    try:
        terms = [one for one in job.recipe.objectives if not isinstance(one, Distil)]  # which keeps next to nothing
        own = replace(job.recipe, objectives=terms)
        learner = meta_learner(own, data.pipeline, config.freeze or frozen_by_default(own), config.lora)
        last = stage_starts(terms, data.starts)[-1]
        kinds = batch_shapes(data, last)
        beside = bytes_of(curating, references, read, last)
        need = fullest(learner, kinds, setting).total + beside
    except Exception as error:  # a user's objective may do what fake tensors can't: an estimate must not end a run
        return f"not estimated: {error}"
    free, local = free_memory(device), int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if kind == "cpu" else 1
    if free is None:
        return f"{gib(need)} a rank by estimate; this {device.type} does not tell what is free"
    if need * local <= free:
        return f"{gib(need)} a rank by estimate, {gib(free / local)} free"
    ways = " or ".join(mends(learner, kinds, setting, free // local - beside))
    advice = ways or "a smaller --batch-size (--accumulate and --checkpointing do not suffice)"
    raise UserError(
        f"this run needs {gib(need)} a rank by estimate, and {gib(free / local)} is free: give {advice}, or "
        "--no-memory-check to try it as it is."
    )


def bytes_of(curating: Curator | None, references: Sequence[Reference], data: DataPlan, progress: float) -> int:
    """What choosing adds to a step of one rank: the references' weights, and the super-batch with what they read."""
    weights = sum(held(tensors(one.model)) for one in references)
    beside = fields_beside(curating, references)
    if not beside:
        return weights
    own = [field for field in beside if not any(field is known for known in data.fields)]
    kinds = batch_shapes(replace(data, fields=[*data.fields, *own]), progress)
    return weights + max(shapes.bytes(shapes.size // data.ranks) for shapes in kinds)
