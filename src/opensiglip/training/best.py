"""The best of a run's judgements by one metric: its checkpoint stays, and training ends where none better comes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from opensiglip.errors import UserError


@dataclass
class Best:
    """What `--keep-best` and `--patience` ask for; a metric is the better the higher it is."""

    metric: str
    patience: int | None = None  # judgements without a better one that end training; None: none do
    value: float | None = None
    step: int | None = None
    waited: int = 0  # judgements since

    def judge(self, step: int, figures: Mapping[str, float]) -> bool:
        """Is the model after `step` steps the best so far? Raises UserError where it was not judged by the metric."""
        if self.metric not in figures:
            raise UserError(
                f"--keep-best {self.metric} is not measured here; there are {', '.join(figures) or 'none'}."
            )
        value = figures[self.metric]
        if not math.isfinite(value) or (self.value is not None and value <= self.value):
            self.waited += 1
            return False
        self.value, self.step, self.waited = value, step, 0
        return True

    @property
    def exhausted(self) -> bool:
        """Has it waited as long as it was to?"""
        return self.patience is not None and self.waited >= self.patience

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"metric": self.metric, "value": self.value, "step": self.step, "waited": self.waited}

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Go on from a checkpoint's, if it is of the same metric."""
        if state is not None and state["metric"] == self.metric:
            self.value, self.step, self.waited = state["value"], state["step"], state["waited"]
