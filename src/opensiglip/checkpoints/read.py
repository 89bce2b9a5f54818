"""`read`: a checkpoint by its folder, file or hub id, whatever its format."""

from pathlib import Path

from opensiglip.checkpoints.checkpoint import Checkpoint, locate, read_json
from opensiglip.checkpoints.formats import big_vision, hugging_face, open_clip, own, timm_vit
from opensiglip.errors import UserError
from opensiglip.models.model import SIDECAR

FORMATS = (
    "a run, a transformers folder of SiglipModel or Siglip2Model, an open_clip SigLIP or CoCa, a timm encoder, or "
    "big_vision's .npz"
)


def read(name: str | Path) -> Checkpoint:
    """Find what it is and read it. Raises UserError where it is nothing of ours to read."""
    asked, place = str(name), locate(str(name))
    if place.is_file():
        if place.suffix != ".npz":
            raise UserError(f"{asked} is no .npz file; give {FORMATS}.")
        return big_vision.read(place, asked)
    for folder in (place, place / "model"):
        if (folder / SIDECAR).is_file():
            return own.read(folder, asked)
    if (place / open_clip.CONFIG).is_file():
        return open_clip.read(place, asked)
    config = read_json(place / "config.json")
    if config.get("model_type") in hugging_face.TYPES:
        return hugging_face.read(place, asked)
    if "architecture" in config:
        return timm_vit.read(place, asked)
    files = sorted(place.glob("*.npz"))
    if len(files) == 1:
        return big_vision.read(files[0], asked)
    raise UserError(f"{asked} is of a kind that can't be read; give {FORMATS}.")
