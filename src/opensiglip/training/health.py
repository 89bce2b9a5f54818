"""The health of a run beside its losses: temperature, bias, and whether self-distillation still says anything."""

import math
import sys

from opensiglip.errors import UserError
from opensiglip.objectives.base import Notes
from opensiglip.objectives.distillation import Distilled
from opensiglip.training.learner import Learner
from opensiglip.training.log import finite

NEAR = 0.01  # of ln K: a teacher's entropy so near 0 or ln K says nothing about the image
WARN, STOP = 20, 200  # steps in a row


class Collapsed(UserError):
    """The teacher gives every image the same answer, or none."""


def signals(learner: Learner, notes: Notes) -> dict[str, float | None]:
    """Numbers for the log: the scalar notes, the norm of each centre, temperature and bias."""
    said = {name: finite(float(note)) for name, note in notes.items() if note.ndim == 0}
    for objective in learner.terms():
        if isinstance(objective, Distilled):
            said[f"{objective.name}/centre_norm"] = finite(float(objective.centre.norm()))
    if learner.model.text is not None:
        said["logit_scale"] = finite(float(learner.model.logit_scale.detach().exp()))
        said["logit_bias"] = finite(float(learner.model.logit_bias.detach()))
    return said


class Watch:
    """Warns of a collapsed teacher, then ends the run; meanwhile no checkpoint replaces the last good one."""

    def __init__(self) -> None:
        self.streaks: dict[str, int] = {}

    def see(self, step: int, learner: Learner, said: dict[str, float | None]) -> bool:
        """Whether the run is well at this step. Raises Collapsed after STOP bad steps in a row."""
        well = True
        for objective in learner.terms():
            entropy = said.get(f"{objective.name}/teacher_entropy")
            if not isinstance(objective, Distilled) or entropy is None:
                continue
            share = entropy / math.log(len(objective.centre))
            streak = self.streaks.get(objective.name, 0) + 1 if not NEAR < share < 1 - NEAR else 0
            self.streaks[objective.name] = streak
            cause = (
                "every image gets the same prototype; the centre does not keep up, or the temperature is too low"
                if share <= NEAR
                else "all prototypes are equally likely for every image; the teacher lags too far or --lr is too high"
            )
            told = f"{objective.name}: the teacher's entropy is {entropy:.3g} of {math.log(len(objective.centre)):.3g}"
            if streak == WARN:
                print(f"warning: {told} for {WARN} steps ({cause}).", file=sys.stderr, flush=True)
            if streak == STOP:
                raise Collapsed(
                    f"{told} for {STOP} steps at step {step}: {cause}; --resume from the last good checkpoint with "
                    "another --momentum or --lr and --changed."
                )
            well = well and streak < WARN
        return well
