"""`Pretrained`: a trained model with its text pipeline, box format, tasks and frame: read from any format, and written.

`train --init`, eval, predict, the demo, export and `opensiglip.load` all open models through it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from opensiglip.checkpoints.contents import Contents, frame_of
from opensiglip.checkpoints.fit import OURS
from opensiglip.checkpoints.formats import (
    adapter,
    big_vision,
    clip,
    folder,
    open_clip,
    open_clip_library,
    own,
    siglip,
    timm_vit,
)
from opensiglip.checkpoints.source import locate, read_config
from opensiglip.data.boxes import BoxFormat
from opensiglip.data.text import TextPipeline
from opensiglip.disk import whole_files
from opensiglip.errors import UserError, first_line
from opensiglip.models.limits import refuse_not_finite
from opensiglip.models.model import Model

FORMATS = (
    "a run, a transformers folder of SiglipModel, Siglip2Model or CLIPModel, an open_clip SigLIP or CoCa, a timm "
    "encoder, a LoRA adapter of peft, or big_vision's .npz"
)


class Pretrained(Contents):
    """A trained model with everything needed to use it, as listed in `Contents`."""

    @classmethod
    def open(cls, spec: str | Path) -> "Pretrained":
        """Open a run or its model/ folder, an export, another library's folder, file or hub id, `timm:NAME`, or
        `open_clip:NAME:PRETRAINED` for any model that open_clip can build.

        Raises UserError if it can't be read.
        """
        found = cls._found(str(spec))
        if isinstance(found.model, nn.Module):
            refuse_not_finite(found.name, found.model.state_dict())
        return found

    @classmethod
    def _found(cls, name: str) -> "Pretrained":
        prefix, _, rest = name.partition(":")
        try:
            if prefix == "open_clip" and rest:
                return cls(**vars(open_clip_library.read(rest, name)))
            if prefix == "timm" and rest:
                return cls(**vars(timm_vit.read(rest, name)))
            return cls(**vars(_read(locate(name), name)))
        except UserError:
            raise
        except Exception as error:  # models are untrusted, and each library has its own errors for damaged ones
            raise UserError(
                f"{name} can't be read ({type(error).__name__}: {first_line(error)}); fetch or export it again, whole."
            ) from error

    @classmethod
    def of(
        cls,
        model: Model,
        pipeline: TextPipeline | None,
        *,
        name: str,
        boxes: BoxFormat | None = None,
        tasks: Sequence[str] = (),
        languages: Sequence[str] = (),
        card: Mapping[str, Any] | None = None,
    ) -> "Pretrained":
        """Wrap an OpenSigLIP model, as in training: changes of its weights take effect at once."""
        known = tuple(tasks), tuple(languages), card or {}
        return cls(name, model, frame_of(model.architecture), OURS, pipeline, boxes, *known)

    def with_tokenizer(self, tokenizer: str) -> "Pretrained":
        """A copy with the text pipeline of a tokenizer's folder or hub id, for weights without one.

        Raises UserError if the tokenizer has more entries than the model has rows.
        """
        length, rows = self.model.architecture.length, self.model.vocabulary
        return replace(self, pipeline=TextPipeline.released(tokenizer, length=length, vocabulary=rows, name=self.name))

    def save(
        self,
        place: str | Path,
        format: Literal["transformers", "onnx", "open_clip", "timm"] = "transformers",
        *,
        repository: str = "model",
    ) -> None:
        """Write a folder with weights, tokenizer, processor, opensiglip.json and card, atomically.

        `repository`: the name that the card's example loads. Raises UserError if the networks are another library's.
        """
        if not isinstance(self.model, Model):
            raise UserError(
                f"{self.name} is a {self.format}, a format that can't be written; save it with its own library."
            )
        with whole_files(Path(place), last=open_clip.CONFIG if format == "open_clip" else "config.json") as part:
            folder.write(part, self, format, repository=repository)


def _read(place: Path, name: str) -> Contents:
    if place.is_file():
        if place.suffix != ".npz":
            raise UserError(f"{name} is not an .npz file; give {FORMATS}.")
        return big_vision.read(place, name)
    if (ours := own.find(place)) is not None:
        return own.read(ours, name)
    if (place / adapter.CONFIG).is_file():
        base = adapter.base_of(place, name)
        under = locate(base)
        if (under / adapter.CONFIG).is_file():
            raise UserError(f"{name} is an adapter of {base}, which is an adapter too; merge that one with peft first.")
        found = _read(under, base)
        if not isinstance(found.model, Model):
            raise UserError(f"{name} is an adapter of {base}, a {found.format}, whose networks can't be used.")
        count = adapter.merge(place, name, found.model.host[0])
        return replace(found, name=name, format=f"{found.format}, a LoRA adapter of {count} matrices merged")
    if (place / open_clip.CONFIG).is_file():
        return open_clip.read(place, name)
    config = read_config(place / "config.json")
    if config.get("model_type") in siglip.TYPES:
        return siglip.read(place, name)
    if config.get("model_type") == "clip":
        return clip.read(place, name)
    if "architecture" in config:
        return timm_vit.read(str(place), name)
    files = sorted(file for file in place.glob("*.npz") if file.is_file())
    if len(files) == 1:
        return big_vision.read(files[0], name)
    raise UserError(f"{name} has a format that can't be read; give {FORMATS}.")
