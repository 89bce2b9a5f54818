"""A run's folder: the one place that knows the names in it, and which of its checkpoints are whole."""

from dataclasses import dataclass
from pathlib import Path

from opensiglip.errors import UserError


@dataclass(frozen=True)
class RunFolder:
    """RUN/: config.json, metrics.jsonl, checkpoints/, stages/, and at the end model/, summary.json and report.html.

    `model` holds the tokenizer and its sidecar from the start, so that a run that was killed can be opened.
    """

    path: Path

    @property
    def config(self) -> Path:
        """What was decided: the recipe, its keywords, train's arguments. From here on the folder holds a run."""
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        """A row of numbers a line."""
        return self.path / "metrics.jsonl"

    @property
    def model(self) -> Path:
        """What users take away: a transformers folder."""
        return self.path / "model"

    @property
    def summary(self) -> Path:
        """The figures of a run that has ended."""
        return self.path / "summary.json"

    @property
    def report(self) -> Path:
        """The page that shows a run that has ended."""
        return self.path / "report.html"

    @property
    def checkpoints(self) -> Path:
        """A folder of each checkpoint."""
        return self.path / "checkpoints"

    @property
    def stages(self) -> Path:
        """The model as it was when each later part of the recipe began."""
        return self.path / "stages"

    @property
    def ended(self) -> bool:
        """Has its model been written?"""
        return (self.model / "config.json").is_file()

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint after so many steps lies."""
        return self.checkpoints / f"step-{step:08d}"

    def stage(self, step: int) -> Path:
        """Where the model as it was after so many steps lies."""
        return self.stages / f"step-{step:08d}.safetensors"

    def written_stages(self) -> dict[int, Path]:
        """The stages that are there, by the steps taken."""
        return {int(path.stem.removeprefix("step-")): path for path in sorted(self.stages.glob("step-*.safetensors"))}

    def complete(self) -> list[Path]:
        """The whole checkpoints, oldest first."""
        found = self.checkpoints.glob("step-*")
        return sorted(path for path in found if path.suffix != ".part" and state_of(path).is_file())

    def newest(self) -> Path | None:
        """The newest whole checkpoint, or None."""
        return next(reversed(self.complete()), None)

    def killed(self) -> Path | None:
        """The newest whole checkpoint of a run that has not ended; None where it has, or where this is no run.

        Raises UserError where the run has no checkpoint yet.
        """
        if self.ended or not self.config.is_file():
            return None
        newest = self.newest()
        if newest is None:
            raise UserError(
                f"{self.path} is a run that has not ended and has no checkpoint yet: let it go on with --resume, "
                "or train it again with a smaller --save-every."
            )
        return newest

    @classmethod
    def of_checkpoint(cls, checkpoint: Path) -> "RunFolder":
        """The run of RUN/checkpoints/step-N."""
        return cls(checkpoint.parent.parent)

    @classmethod
    def of_model(cls, model: Path) -> "RunFolder":
        """The run of RUN/model."""
        return cls(model.parent)


def learner_of(checkpoint: Path) -> Path:
    """The weights in a checkpoint: model, EMA teacher and objectives' heads."""
    return checkpoint / "learner.safetensors"


def optimizer_of(checkpoint: Path) -> Path:
    """The optimizer's state in a checkpoint."""
    return checkpoint / "optimizer.safetensors"


def state_of(checkpoint: Path) -> Path:
    """How far a checkpoint is; written last."""
    return checkpoint / "state.json"
