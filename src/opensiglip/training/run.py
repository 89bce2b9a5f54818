"""`train`: a recipe and data in, a run folder out."""

import inspect
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from opensiglip.checkpoints.run_folder import RunFolder
from opensiglip.models import lora
from opensiglip.training.build import build
from opensiglip.training.config import TrainConfig
from opensiglip.training.finish import finish
from opensiglip.training.resolve import resolve


def train(recipe: str, **keywords: Any) -> dict[str, Any]:
    """Train a recipe on data and leave a run folder: checkpoints, model, metrics, summary and report.

    Returns the summary, on ranks other than the first an empty one. Raises UserError on bad input, before anything is
    written.

    Args:
        recipe: a name that `opensiglip recipes` lists, or FILE.py:FUNCTION for one of your own.
        **keywords: those of `TrainConfig` (data and out are needed), and the recipe's own, such as size and resolution.
    """
    job = resolve(recipe, keywords)
    built = build(job)
    loop, folder = built.loop, job.config.out
    with stops_said(folder, job.config.save_every):
        result = loop.run()
    lora.merge(loop.learner.model)
    summary: dict[str, Any] = {}
    if loop.accelerator.is_main_process:
        summary = finish(folder, job.record, loop, job.recipe, result, built.held_out)
    loop.accelerator.wait_for_everyone()
    loop.accelerator.end_training()
    return summary


@contextmanager
def stops_said(folder: Path, save_every: int) -> Iterator[None]:
    """Turn Ctrl-C, and a scheduler's SIGTERM, into a KeyboardInterrupt that says what is saved."""
    main, before = threading.current_thread() is threading.main_thread(), signal.getsignal(signal.SIGTERM)
    if main:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        newest = RunFolder(folder).newest()
        if newest is None:
            unsaved = f"stopped before the first checkpoint (--save-every {save_every}): nothing is saved"
            raise KeyboardInterrupt(f"{unsaved}, and --resume begins anew.") from None
        raise KeyboardInterrupt(f"stopped; --resume goes on from {newest}.") from None
    finally:
        if main:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


# Help and editors show every keyword: those of `TrainConfig`, then whatever the recipe has.
_OWN, *_REST = inspect.signature(train).parameters.values()
train.__signature__ = inspect.Signature([_OWN, *inspect.signature(TrainConfig).parameters.values(), *_REST])  # type: ignore[attr-defined]
_ARGS = inspect.getdoc(TrainConfig) or ""
train.__doc__ = (train.__doc__ or "").rstrip() + "\n    " + _ARGS.partition("Args:\n")[2].replace("\n", "\n    ")
