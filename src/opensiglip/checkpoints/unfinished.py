"""A run that has not ended: its model as the newest whole checkpoint has it."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from opensiglip.errors import UserError
from opensiglip.models import lora
from opensiglip.models.model import Model
from opensiglip.models.sizes import Architecture


def complete(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.suffix != ".part" and (path / "state.json").is_file())


def unfinished(folder: Path) -> Path | None:
    """The newest whole checkpoint, where `folder` is the model/ of a run that has not ended; None where it has.

    Raises UserError where the run has no checkpoint yet.
    """
    if (folder / "config.json").is_file() or not (folder.parent / "config.json").is_file():
        return None
    found = complete(folder.parent / "checkpoints")
    if not found:
        raise UserError(
            f"{folder.parent} is a run that has not ended and has no checkpoint yet: let it go on with --resume, "
            "or train it again with a smaller --save-every."
        )
    return found[-1]


def as_of(checkpoint: Path, architecture: Architecture, vocabulary: int) -> Model:
    """The model in a checkpoint, low-rank matrices merged. Raises UserError where it can't be read."""
    model = Model.new(architecture, vocabulary)
    try:
        learner = load_file(checkpoint / "learner.safetensors")
        state = {name.removeprefix("model."): x for name, x in learner.items() if name.startswith("model.")}
        ranks = {name.split(".")[0]: len(x) for name, x in state.items() if ".lora_A." in name}
        for tower, rank in ranks.items():
            lora.add(getattr(model, tower).tower, rank)
        model.load_state_dict(state)
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"checkpoint {checkpoint} can't be read ({reason}); delete that folder, or --resume."
        ) from error
    lora.merge(model)
    return model
