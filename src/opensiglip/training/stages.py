"""The stages of a run: shares of training from which on a step reads or computes something else."""

from collections.abc import Iterable

from opensiglip.objectives.base import Objective
from opensiglip.types import Batch


def stage_starts(objectives: Iterable[object], read: Iterable[float] = ()) -> list[float]:
    """Where each stage begins, in order, the first at 0: where a term begins, and at the shares `read` of the data."""
    terms = {float(term.start) for term in objectives if isinstance(term, Objective)}
    return sorted({0.0, *(share for share in {*terms, *read} if share < 1)})


def tokens_read(batch: Batch, patch: int) -> str:
    """How many tokens a tower reads of each image and text that are compared, in words: "64 image and 16 text tokens".

    Of a NaFlex batch the longest image's; `patch`: pixels of a side.
    """
    view = "image" if "image" in batch else "global"
    found = []
    if f"{view}_kept" in batch:
        found.append(f"{batch[f'{view}_kept'].shape[-1]} image")
    elif f"{view}_valid" in batch:
        found.append(f"{batch[view].shape[1]} image")
    elif view in batch:
        found.append(f"{batch[view].shape[-2] * batch[view].shape[-1] // patch**2} image")
    if "text" in batch:
        found.append(f"{batch['text'].shape[-1]} text")
    return f"{' and '.join(found)} tokens" if found else "no tokens"
