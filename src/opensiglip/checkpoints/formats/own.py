"""Our own: RUN, or the model/ folder that a run writes."""

from dataclasses import replace
from pathlib import Path

from opensiglip.checkpoints.checkpoint import Checkpoint
from opensiglip.models.model import Model, read_sidecar


def read(folder: Path, name: str) -> Checkpoint:
    """The checkpoint of a folder with opensiglip.json. Raises UserError."""
    model, facts = Model.from_pretrained(folder), read_sidecar(folder)
    networks = model.architecture
    if networks.encoder is not None:  # the weights are here, not where they once came from
        networks = replace(networks, encoder=str(folder))
    return Checkpoint(name, "OpenSigLIP", model.state_dict(), networks, model.vocabulary, folder, facts.get("text"))
