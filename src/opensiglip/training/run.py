"""`train`: a recipe and data in, a run folder out."""

import inspect
from contextlib import ExitStack
from typing import Any

from opensiglip.checkpoints.run_folder import RunFolder
from opensiglip.disk import refusals
from opensiglip.distributed import lost_ranks_said
from opensiglip.models import averaged_head, lora
from opensiglip.reports.notebook import TrainingResult
from opensiglip.training.build import build
from opensiglip.training.config import TrainConfig
from opensiglip.training.finish import finish
from opensiglip.training.resolve import resolve
from opensiglip.training.stop import stopping


def train(recipe: str, **keywords: Any) -> dict[str, Any]:
    """Train a recipe on data and write a run folder: checkpoints, model, metrics, summary and report.

    Returns the summary; it is empty on ranks other than the first. Raises UserError on bad input, before anything is
    written.

    Args:
        recipe: a name listed by `opensiglip recipes`, or FILE.py:FUNCTION for your own recipe.
        **keywords: those of `TrainConfig` (data and out are required), and the recipe's own, such as size.
    """
    job = resolve(recipe, keywords)
    folder = job.config.out
    again = "make room, or mend the permission, and go on with --resume"
    with (
        stopping(RunFolder(folder)) as stop,
        refusals(folder, again),
        lost_ranks_said(stop.asked),
        ExitStack() as until_end,
    ):
        built = build(job, until_end)
        loop = built.loop
        loop.stop = stop
        with stop.waits():
            result = loop.run()
        summary: dict[str, Any] = {}
        if (model := loop.model()) is not None:
            lora.merge(model)
            averaged_head.settle(model)
            summary = finish(folder, job.record, loop, job.recipe, model, result, built.held_out)
        loop.accelerator.wait_for_everyone()
        loop.accelerator.end_training()
    return TrainingResult(summary)


# Help and editors show every keyword: those of `TrainConfig`, then those of the recipe.
_OWN, *_REST = inspect.signature(train).parameters.values()
train.__signature__ = inspect.Signature([_OWN, *inspect.signature(TrainConfig).parameters.values(), *_REST])  # type: ignore[attr-defined]
_ARGS = inspect.getdoc(TrainConfig) or ""
train.__doc__ = (train.__doc__ or "").rstrip() + "\n    " + _ARGS.partition("Args:\n")[2].replace("\n", "\n    ")
