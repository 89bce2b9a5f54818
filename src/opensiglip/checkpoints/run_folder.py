"""A run's folder: the one place that knows the names in it, and which of its checkpoints are whole."""

from dataclasses import dataclass
from pathlib import Path

from opensiglip.json_file import SIDECAR, load_json

PART = ".part"  # ends the name of what is being written
DAMAGED = ".damaged"  # and of a checkpoint that was passed over


@dataclass(frozen=True)
class RunFolder:
    """RUN/: config.json, metrics.jsonl, seen.safetensors, start/, checkpoints/, stages/; below, what its end writes.

    `lock` is there while a process trains in the folder.
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
    def seen(self) -> Path:
        """Perceptual hashes of the images that it has read."""
        return self.path / "seen.safetensors"

    @property
    def lock(self) -> Path:
        """Who trains here now."""
        return self.path / "lock.json"

    @property
    def start(self) -> Path:
        """Text pipeline and description of the networks, which every rank begins by; a checkpoint has its own copy."""
        return self.path / "start"

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
    def example(self) -> Path:
        """A held-out image, so that there is one to try the model on."""
        return self.path / "example.png"

    @property
    def checkpoints(self) -> Path:
        """A folder of each checkpoint."""
        return self.path / "checkpoints"

    @property
    def stages(self) -> Path:
        """The model as it was when each later part of the recipe began."""
        return self.path / "stages"

    @property
    def begun(self) -> bool:
        """Is this the folder of a run?"""
        try:
            return "train" in load_json(self.config)
        except (OSError, ValueError, TypeError):
            return False

    @property
    def ended(self) -> bool:
        """Has its model been written? Towers of other makes have a folder and a config each; the sidecar comes last."""
        towers = (self.model / SIDECAR).is_file() and any(self.model.glob("*/config.json"))
        return (self.model / "config.json").is_file() or towers

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
        whole = (path for path in found if path.suffix not in (PART, DAMAGED))
        return sorted(path for path in whole if manifest_of(path).is_file() or state_of(path).is_file())

    def newest(self) -> Path | None:
        """The newest whole checkpoint, or None."""
        return next(reversed(self.complete()), None)

    @classmethod
    def of_checkpoint(cls, checkpoint: Path) -> "RunFolder":
        """The run of RUN/checkpoints/step-N."""
        return cls(checkpoint.parent.parent)

    @classmethod
    def around(cls, path: Path) -> "RunFolder | None":
        """The run that a folder is, or that it is the model or a checkpoint of; None where it is of none."""
        runs = (cls(path), cls.of_model(path), cls.of_checkpoint(path)) if path.is_dir() else ()
        return next((run for run in runs if run.begun), None)

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


def tally_of(checkpoint: Path) -> Path:
    """How often a run that curates has read and selected each example, in a checkpoint."""
    return checkpoint / "tally.safetensors"


def state_of(checkpoint: Path) -> Path:
    """How far a checkpoint is."""
    return checkpoint / "state.json"


def manifest_of(checkpoint: Path) -> Path:
    """Size and hash of every file of a checkpoint; older versions wrote none."""
    return checkpoint / "manifest.json"
