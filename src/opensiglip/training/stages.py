"""The stages of a run: shares of training from which on a step reads or computes something else."""

from collections.abc import Iterable

from opensiglip.data.fields.field import Field
from opensiglip.objectives.base import Objective


def stage_starts(objectives: Iterable[object], fields: Iterable[Field]) -> list[float]:
    """Where each stage begins, in order, the first at 0: where a term begins, or a field begins or ends."""
    terms = {float(term.start) for term in objectives if isinstance(term, Objective)}
    drawn = {float(share) for field in fields for share in (field.start, field.end)}
    return sorted({0.0, *(share for share in terms | drawn if share < 1)})
