"""Terms that never begin in a run, as its checkpoints have them, and as a run has them that goes on from there.

A run builds no such term (`recipes.find.build_recipe`). One that goes on from it may have the term, which then begins
fresh. Up to version 0.2 every term was built, so older checkpoints hold its initial weights, which the optimizer has
not touched; these are left out.
"""

from collections.abc import Iterable

from torch import Tensor

from opensiglip.training.learner import Learner

TERM, TEACHER = "objectives.", "teacher"


def new_terms(learner: Learner, stored: Iterable[str]) -> set[str]:
    """The names of objectives with weights or buffers of which a checkpoint with the tensors `stored` has none."""
    return {term.removeprefix(TERM) for term in _terms(learner.state_dict()) - _terms(stored)}


def without_terms(learner: Learner, names: set[str]) -> dict[str, Tensor]:
    """The learner's state without the objectives `names`, and without the teacher if it teaches only these."""
    gone = {TERM + name for name in names}
    taught = {name for name, term in learner.objectives.items() if term.teacher is not None}
    if taught and taught <= names:
        gone.add(TEACHER)
    return {name: tensor for name, tensor in learner.state_dict().items() if _part(name) not in gone}


def of_terms(learner: Learner, stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors without those of objectives that the learner lacks.

    With such objectives goes their teacher, where the learner has none. Of objectives that were trained there is
    optimizer state, too, which does not fit the learner's parameters.
    """
    gone = _terms(stored) - _terms(learner.state_dict())
    if gone and learner.teacher is None:
        gone.add(TEACHER)
    return {name: tensor for name, tensor in stored.items() if _part(name) not in gone}


def _terms(names: Iterable[str]) -> set[str]:
    return {_part(name) for name in names if name.startswith(TERM)}


def _part(name: str) -> str:
    """The part of a learner that a tensor belongs to: "model", "teacher" or "objectives.NAME"."""
    first, _, rest = name.partition(".")
    return TERM + rest.partition(".")[0] if name.startswith(TERM) else first
