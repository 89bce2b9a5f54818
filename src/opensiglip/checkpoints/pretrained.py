"""`Pretrained`: a trained model with its text pipeline, box format, tasks and frame, whatever it was read from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from opensiglip.checkpoints.checkpoint import locate, most_patches, read_json
from opensiglip.checkpoints.fit import assemble
from opensiglip.checkpoints.formats import clip, open_clip_library
from opensiglip.checkpoints.read import read
from opensiglip.checkpoints.tokenizer import text_of
from opensiglip.data.boxes import BoxFormat
from opensiglip.data.fields.frame import Frame, Geometry
from opensiglip.data.fields.naflex import NaFlex
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.models.model import SIDECAR, Model, read_sidecar
from opensiglip.models.sizes import Architecture


@dataclass(frozen=True)
class Pretrained:
    """A model on the CPU, in eval mode, and what it takes to use it.

    `model` is a `Model`, or another library's behind the same attributes: vision, text, decoder, pali, logit_scale,
    logit_bias (None where a softmax compares), architecture, vocabulary. `vision.to_text`, where a tower has it, brings
    patches into the texts' space.
    """

    name: str  # as it was asked for, for messages
    model: Any
    frame: Geometry  # how images are shown to it
    format: str  # what it was read from, in words
    pipeline: TextPipeline | None = None  # None without text tower and decoder, or where the tokenizer is missing
    boxes: BoxFormat | None = None
    tasks: tuple[str, ...] = ()  # what its decoder was trained to write: "cap", "aref", "gcap"
    languages: tuple[str, ...] = ()  # of its training, where known
    card: Mapping[str, Any] = field(default_factory=dict)  # what a model card says of its making

    @classmethod
    def open(cls, spec: str | Path) -> "Pretrained":
        """A run or its model/ folder, an export, a transformers, timm or open_clip folder or hub id, big_vision's .npz;
        `timm:NAME`; `open_clip:NAME:PRETRAINED`.

        Raises UserError naming what can't be read.
        """
        name = str(spec)
        prefix, _, rest = name.partition(":")
        if prefix == "open_clip" and rest:
            library, tokenizer = open_clip_library.read(rest)
            pipeline = TextPipeline.of_open_clip(tokenizer, name)
            model = open_clip_library.OpenClip(library, pipeline.policy.length, len(pipeline)).eval()
            return cls(name, model, Frame(model.architecture.resolution), "open_clip's library", pipeline)
        if prefix == "timm" and rest:
            name = rest if Path(rest).exists() or "/" in rest else f"timm/{rest}"
        place = locate(str(Path(name).expanduser()) if name.startswith("~") else name)
        if place.is_dir() and not (place / SIDECAR).is_file():
            config = read_json(place / "config.json")
            if config.get("model_type") == "clip":
                other = clip.read(place, name, read_json(place / "preprocessor_config.json")).eval()
                pipeline = TextPipeline.of_clip(place, other.architecture.length, name)
                return cls(str(spec), other, Frame(other.architecture.resolution), "transformers CLIPModel", pipeline)
        checkpoint = read(place)
        model, folder = assemble(checkpoint).eval(), checkpoint.folder
        networks, rows = model.architecture, checkpoint.vocabulary
        boxes, tasks, languages = None, (("cap",) if model.decoder is not None else ()), ()
        ours: TextPipeline | None = None
        if folder is not None and (folder / SIDECAR).is_file():
            facts = read_sidecar(folder)
            try:
                written = facts if model.decoder or model.pali else {"boxes": None, "tasks": ()} | facts
                boxes = None if written["boxes"] is None else BoxFormat.parse(written["boxes"])
                tasks, languages = tuple(written["tasks"]), tuple(facts.get("languages", ()))
                ours = TextPipeline.from_pretrained(folder, facts["text"]) if model.text or tasks else None
            except (KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{folder / SIDECAR} lacks {error}; export the run again.") from error
        elif folder is not None and checkpoint.text is not None:
            ours = TextPipeline.from_pretrained(folder, checkpoint.text)
        elif folder is not None and rows:
            ours = text_of(folder, length=networks.length, vocabulary=rows, name=name)
        frame = frame_of(networks, most_patches(folder))
        return cls(str(spec), model, frame, checkpoint.kind, ours, boxes, tasks, languages)

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
        """A model of ours at hand, as in training: what uses it follows its weights."""
        known = tuple(tasks), tuple(languages), card or {}
        return cls(name, model, frame_of(model.architecture), "OpenSigLIP", pipeline, boxes, *known)

    def with_tokenizer(self, tokenizer: str) -> "Pretrained":
        """With the text pipeline of a tokenizer's folder or hub id, for weights that come without one.

        Raises UserError where it has more entries than the model has rows.
        """
        networks = self.model.architecture
        found = text_of(tokenizer, length=networks.length, vocabulary=self.model.vocabulary, name=self.name)
        return replace(self, pipeline=found)


def frame_of(networks: Architecture, most: int | None = None) -> Geometry:
    """How images are shown to these networks: squashed to their square, or in their own aspect ratio by NaFlex.

    `most`: patches of an image that a NaFlex model sees; by default those of its table of positions.
    """
    if not networks.naflex:
        return Frame(networks.resolution)
    most = most or (networks.resolution // networks.patch) ** 2
    return NaFlex(networks.patch, most, (most,))
