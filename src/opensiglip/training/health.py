"""The health of a run: finite numbers, the objectives' signals in the log, and their alarms."""

import math
import sys

from opensiglip.errors import UserError
from opensiglip.objectives.base import Notes, Signal
from opensiglip.training.learner import Learner
from opensiglip.training.log import Row, finite
from opensiglip.training.sharding import whole

PATIENCE = 5  # non-finite steps in a row that end a run
LAST = 0.9  # share of training from which on no alarm ends a run


class Diverged(UserError):
    """The loss or its gradient stayed non-finite."""


class Collapsed(UserError):
    """An objective's alarm has lasted too long."""


def signals(learner: Learner, notes: Notes) -> list[Signal]:
    """The scalar notes, the objectives' signals, temperature and bias; of two of one name the later counts.

    To be called on all ranks.
    """
    found = [Signal(name, float(note)) for name, note in notes.items() if note.ndim == 0]
    for objective in learner.terms():
        found += objective.health(notes)
    if learner.model.text is not None:
        found.append(Signal("logit_scale", float(whole(learner.model.logit_scale.detach()).exp())))
        found.append(Signal("logit_bias", float(whole(learner.model.logit_bias.detach()))))
    return list({signal.name: signal for signal in found}.values())


def logged(found: list[Signal]) -> dict[str, float | None]:
    """Signals as columns of the log."""
    return {signal.name: finite(signal.value) for signal in found}


def check_finite(step: int, failures: int, row: Row) -> None:
    """Raises Diverged where this step is the last of `PATIENCE` in a row that were skipped; `row` is its log's."""
    if failures == PATIENCE:
        bad = [name for name, value in row.items() if name.startswith("loss") and value is None]
        raise Diverged(
            f"{' and '.join(bad or ['the gradient'])} not finite for {PATIENCE} steps in a row at step {step}: lower "
            "--lr, or --resume from the last checkpoint with --precision fp32 --changed."
        )


class Alarms:
    """Counts alarms in a row: first a warning and no more checkpoints over the last good one, then the run ends.

    In its last tenth a run is not ended: little would be saved, and its model is worth a look.
    """

    def __init__(self) -> None:
        self.streaks: dict[str, int] = {}

    def check(self, step: int, found: list[Signal], progress: float) -> bool:
        """Whether the run is well at this step, which stands at the share `progress` of training.

        Raises Collapsed where an alarm has lasted for its `stop` steps.
        """
        for signal in found:
            if signal.alarm is None:
                if math.isfinite(signal.value):
                    self.streaks.pop(signal.name, None)
                continue
            streak = self.streaks[signal.name] = self.streaks.get(signal.name, 0) + 1
            if streak == signal.warn:
                print(f"warning: {signal.alarm} for {streak} steps.", file=sys.stderr, flush=True)
            if signal.stop is not None and streak >= signal.stop and progress < LAST:
                raise Collapsed(
                    f"{signal.alarm} for {streak} steps at step {step}; --resume from the last good checkpoint with "
                    f"{signal.mend} and --changed."
                )
        return all(self.streaks.get(signal.name, 0) < signal.warn for signal in found if signal.stop is not None)
