"""Subject: what is judged, whatever it came from. Tasks know nothing else of a model."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from opensiglip.checkpoints.checkpoint import most_patches
from opensiglip.checkpoints.fit import assemble
from opensiglip.checkpoints.formats import open_clip
from opensiglip.checkpoints.read import read
from opensiglip.checkpoints.tokenizer import text_of
from opensiglip.data.boxes import BoxFormat
from opensiglip.data.fields.frame import Frame, Geometry
from opensiglip.data.fields.naflex import NaFlex
from opensiglip.data.loader import to_device
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.models.coca import Writer
from opensiglip.models.model import SIDECAR, Model, read_sidecar
from opensiglip.models.pali import Pali
from opensiglip.models.sizes import Architecture
from opensiglip.models.towers import Vision
from opensiglip.types import Features, pixels

TEXTS = 256  # encoded at once
PATCHES = 4096  # pooled at once, each alone

Autocast = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Subject:
    """A model behind the three questions that tasks ask: see an image, read texts, see densely in the texts' space."""

    name: str
    frame: Geometry
    device: torch.device
    autocast: Autocast
    vision: Callable[[Any], Features]  # pixels [B, 3, H, W] in [-1, 1], or `Patches` of them
    text: Callable[[Sequence[str]], Tensor] | None = None  # texts -> [T, D]
    to_text: Callable[[Tensor], Tensor] | None = None  # tokens [B, N, D] -> the same patches in the texts' space
    decoder: Writer | None = None
    pipeline: TextPipeline | None = None  # of the decoder and of a text tower of ours
    boxes: BoxFormat | None = None
    pali: Pali | None = None  # an encoder-decoder, in a decoder's place
    tasks: tuple[str, ...] = ()  # what the decoder was trained to write: "cap", "aref", "gcap"
    languages: tuple[str, ...] = ()  # of its training, where known
    scale: float | None = None  # e^t' of a score t x.y + b
    bias: float | None = None

    @classmethod
    def load(cls, spec: str | Path) -> "Subject":
        """A run folder, an export of ours, a transformers folder or hub id of Siglip, Siglip2 or CLIP; a folder of
        open_clip's SigLIP or CoCa;
        `open_clip:NAME[:PRETRAINED or file]`; `timm:NAME or folder`, which is vision only.

        Raises UserError naming what can't be read.
        """
        from opensiglip.inference.foreign import LOADERS, from_transformers  # they make subjects, so they lie above

        name = str(spec)
        prefix, colon, rest = name.partition(":")
        if colon and prefix in LOADERS:
            return LOADERS[prefix](rest)
        folder = Path(name).expanduser()
        if (folder / "model" / SIDECAR).is_file():
            folder = folder / "model"
        if (folder / SIDECAR).is_file():
            return ours(folder, name)
        if (folder / open_clip.CONFIG).is_file():
            return of_open_clip(folder, name)
        return from_transformers(str(folder) if folder.is_dir() else name)

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
        autocast: Autocast | None = None,
        budget: int | None = None,
    ) -> "Subject":
        """A model of ours, as it stands; what is judged follows its weights.

        `budget`: the most patches of an image that a NaFlex model sees; by default those of its table of positions.
        """
        device = next(model.parameters()).device
        has_text = model.text is not None
        return cls(
            name,
            frame_of(model.architecture, budget),
            device,
            autocast or autocast_on(device),
            model.vision,
            partial(_read, model, pipeline) if has_text and pipeline is not None else None,
            partial(each_alone, model.vision) if has_text and isinstance(model.vision, Vision) else None,
            model.decoder,
            pipeline,
            boxes,
            model.pali,
            tuple(tasks),
            tuple(languages),
            float(model.logit_scale.detach().exp()) if has_text else None,
            float(model.logit_bias.detach()) if has_text else None,
        )

    @property
    def has_text(self) -> bool:
        """Has it a text tower, to compare images and texts?"""
        return self.text is not None

    @property
    def has_decoder(self) -> bool:
        """Has it a decoder, to write and to weigh texts?"""
        return self.decoder is not None

    @torch.no_grad()
    def see(self, images: Sequence[Tensor]) -> Features:
        """Images [3, h, w] uint8 in the frame -> pooled [B, D] float32 or None, tokens [B, N, D] float32."""
        batch = to_device(self.frame.batch(images), self.device)
        with self.autocast():
            features = self.vision(pixels(batch, "image"))
        pooled = None if features.pooled is None else features.pooled.float()
        return Features(pooled, features.tokens.float(), features.valid)

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings [T, D] float32 of texts. Raises UserError where there is no text tower."""
        if self.text is None:
            raise UserError(f"{self.name} has no text tower, so texts can't be compared with images.")
        parts = []
        for at in range(0, len(texts), TEXTS):
            with self.autocast():
                parts.append(self.text(texts[at : at + TEXTS]).float())
        return F.normalize(torch.cat(parts), dim=-1)

    @torch.no_grad()
    def dense(self, images: Sequence[Tensor]) -> Tensor:
        """Framed images [3, h, w] uint8 -> patches [B, N, D] float32 in the texts' space where there is a way to it.

        Elsewhere the tokens themselves.
        """
        tokens = self.see(images).tokens
        if self.to_text is None:
            return tokens
        with self.autocast():
            return self.to_text(tokens).float()

    def map_of(self, image: Tensor, patches: Tensor) -> Tensor:
        """What is known of each token of a framed image [N, ...], where its patch stands [rows, columns, ...]."""
        rows, columns = self.frame.grid(image, len(patches))
        return patches[: rows * columns].unflatten(0, (rows, columns))


def ours(folder: Path, name: str) -> Subject:
    """An export of ours, trained or converted. Raises UserError on a sidecar that lacks what its decoder needs."""
    facts = read_sidecar(folder)
    device = best_device()
    model = Model.from_pretrained(folder).to(device).eval()
    try:
        written = facts if model.decoder or model.pali else {"boxes": None, "tasks": ()} | facts
        boxes = None if written["boxes"] is None else BoxFormat.parse(written["boxes"])
        tasks, languages = tuple(written["tasks"]), tuple(facts.get("languages", ()))
        pipeline = TextPipeline.from_pretrained(folder, facts["text"]) if model.text or tasks else None
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / SIDECAR} lacks {error}; export the run again.") from error
    most = most_patches(folder)
    return Subject.of(model, pipeline, name=name, boxes=boxes, tasks=tasks, languages=languages, budget=most)


def frame_of(networks: Architecture, budget: int | None = None) -> Geometry:
    """How images are shown to these networks: squashed to their square, or in their own aspect ratio by NaFlex."""
    if not networks.naflex:
        return Frame(networks.resolution)
    most = budget or (networks.resolution // networks.patch) ** 2
    return NaFlex(networks.patch, most, (most,))


def of_open_clip(folder: Path, name: str) -> Subject:
    """A SigLIP or CoCa of open_clip's. Raises UserError where its tokenizer is missing."""
    checkpoint = read(folder)
    model = assemble(checkpoint).to(best_device()).eval()
    if checkpoint.text is not None:
        pipeline: TextPipeline | None = TextPipeline.from_pretrained(folder, checkpoint.text)
    else:
        pipeline = text_of(folder, length=model.architecture.length, vocabulary=checkpoint.vocabulary, name=name)
    if pipeline is None:
        raise UserError(f"{name} has no tokenizer; fetch it again with its tokenizer.json.")
    return Subject.of(model, pipeline, name=name, tasks=("cap",) if model.decoder else ())


def best_device() -> torch.device:
    """The accelerator, where there is one."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def autocast_on(device: torch.device) -> Autocast:
    """bfloat16 products where a GPU multiplies them; elsewhere none, so that figures are the same on every CPU."""
    pays = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return partial(torch.autocast, device.type, torch.bfloat16, enabled=pays)


def _read(model: Model, pipeline: TextPipeline, texts: Sequence[str]) -> Tensor:
    assert model.text is not None
    ids = torch.from_numpy(np.stack([pipeline.fixed(text) for text in texts]))
    pooled = model.text(ids.to(next(model.parameters()).device)).pooled
    assert pooled is not None
    return pooled


def each_alone(vision: Vision, tokens: Tensor) -> Tensor:
    """Tokens [B, N, D] -> [B, N, D]: what the MAP head says of a patch when it is all there is to attend to (ours)."""
    alone = tokens.flatten(0, 1)[:, None]
    return torch.cat([vision.pool(some) for some in alone.split(PATCHES)]).unflatten(0, tokens.shape[:2])
