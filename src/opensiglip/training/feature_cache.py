"""Frozen towers are encoded once: what their heads read lies in memory-mapped files that runs share.

A tower that is not trained gives an image or a text the same states in every epoch. They are written once, in the run's
precision, and read by every later step; a run that is killed while it writes goes on where it stopped.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from opensiglip.data.example import Source
from opensiglip.data.fields.captions import Captions
from opensiglip.data.fields.curation import CachedRows, Origins
from opensiglip.data.fields.field import Field, Images, Texts
from opensiglip.data.fields.frame import Frame
from opensiglip.data.fields.states import ImageStates, TextStates
from opensiglip.data.sources.cached import CachedSource
from opensiglip.data.sources.referenced import ReferencedSource
from opensiglip.data.text import TextPipeline
from opensiglip.inference.device import Autocast
from opensiglip.models.model import Model
from opensiglip.models.pretrained_towers import is_frozen
from opensiglip.models.sizes import PairShape
from opensiglip.recipes import Recipe
from opensiglip.training.cache_writer import DONE, CacheWriter, encoded_once, room_for
from opensiglip.training.precision import autocast
from opensiglip.training.record import fingerprints

TEXTS_AT_ONCE = 64


@dataclass(frozen=True)
class Frozen:
    """Which towers can be read from a cache."""

    images: bool
    texts: bool
    patches: bool = True  # are patch tokens read, or mean and class token alone?

    @classmethod
    def of(cls, model: Model, recipe: Recipe) -> "Frozen":
        """Those of another make that nothing trains; only where each image and text is always seen the same.

        None where a field reads more of an example than its image, captions and regions, which is all that the cache
        holds, and a reference's rows, which have a cache of their own.
        """
        pair = model.architecture.foreign
        frame = recipe.frame
        still = isinstance(frame, Frame) and frame.crop_area == 1
        images = pair is not None and pair.vision is not None and still and is_frozen(model.vision.tower)
        texts = pair is not None and pair.text is not None and is_frozen(getattr(model.text, "tower", None))
        texts = texts and recipe.lengths is None
        reads = {type(field) for field in recipe.fields}
        plain = reads <= {Images, Texts, Captions, Origins, CachedRows}
        images, texts = plain and images and Images in reads, plain and texts and Texts in reads
        head = model.vision.head if images else None
        return cls(images, texts, model.decoder is not None or (images and (head is None or head.reads_patches)))

    def each(self) -> "list[Frozen]":
        """Images and texts by themselves: each has its own folder, which all runs with that one tower share."""
        images = [replace(self, texts=False)] if self.images else []
        return images + ([Frozen(images=False, texts=True)] if self.texts else [])


def with_features(
    recipe: Recipe,
    model: Model,
    sources: Sequence[Source],
    pipeline: TextPipeline,
    *,
    root: Path,
    limit: float,
    accelerator: Accelerator,
    precision: str,
    asked: bool = False,
) -> tuple[Recipe, list[Source]]:
    """The recipe and its sources, reading states from `root` where towers are frozen; else both as they are.

    `limit`: most gigabytes. `asked`: for them by --features, so that it is said where there are none. The main process
    encodes what is missing while the other ranks wait.
    """
    frozen = Frozen.of(model, recipe)
    if not (frozen.images or frozen.texts):
        if asked:
            why = "no tower of --vision or --text is frozen, or the recipe reads more than images and texts"
            accelerator.print(f"features    --features is not used: {why}", flush=True)
        return recipe, list(sources)
    model.to(accelerator.device)
    within = autocast(precision, accelerator.device)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    wanted = gigabytes(model, recipe, sources, frozen, dtype)
    if wanted > limit or not room_for(root, wanted):
        why = f"more than --features-gb {limit:g}" if wanted > limit else f"more than the disk of {root} has left"
        accelerator.print(f"features    not cached: {wanted:.1f} GB are {why}; towers encode every batch", flush=True)
        return recipe, list(sources)
    kinds = frozen.each()
    writers = [_Features(source, model, recipe, pipeline, kind, within, dtype) for source in sources for kind in kinds]
    written = encoded_once(writers, root, accelerator)
    places = [written[at : at + len(kinds)] for at in range(0, len(written), len(kinds))]
    accelerator.print(f"features    {wanted:.2f} GB of images' states in {root}", flush=True)
    tokens = None if frozen.patches or not frozen.images else model.vision.summary
    read: list[Source] = []
    for one, place in zip(sources, places, strict=True):
        cached = CachedSource(one, place, recipe.frame.pixels, tokens)
        read.append(one.over(cached) if isinstance(one, ReferencedSource) else cached)
    return replace(recipe, fields=with_states(recipe.fields, frozen)), read


def with_states(fields: Sequence[Field], frozen: Frozen) -> list[Field]:
    """The recipe's fields, of which those that a cache serves read states."""
    swapped: list[Field] = []
    for field in fields:
        if frozen.images and type(field) is Images:
            swapped.append(ImageStates())
        elif frozen.texts and type(field) is Texts:
            swapped.append(TextStates(captions=field.captions))
        else:
            swapped.append(field)
    return swapped


def gigabytes(model: Model, recipe: Recipe, sources: Sequence[Source], frozen: Frozen, dtype: torch.dtype) -> float:
    """What the images' states will take, by the shape of one image's; texts take far less."""
    if not frozen.images:
        return 0.0
    side = recipe.frame.pixels
    patches = (side // model.vision.patch) ** 2 if frozen.patches else 0
    count = sum(len(source) for source in sources)
    return float(count * (model.vision.summary + patches) * model.vision.width * dtype.itemsize / 1e9)


def key(source: Source, model: Model, recipe: Recipe, frozen: Frozen, dtype: torch.dtype) -> str:
    """A name of what the states of images or texts depend on: the tower's weights and input, the frame, the data."""
    digest = hashlib.sha256()
    facts = [source.name, fingerprints([source]), str(recipe.frame), repr(recipe.frame), frozen, str(dtype)]
    pair, length = model.architecture.foreign, model.architecture.length if frozen.texts else None
    names = ("pooling",) if frozen.texts else ("mean", "std")
    read = {name: getattr(pair, name) for name in names}
    read |= {name: tuple(value) for name, value in read.items() if isinstance(value, list)}  # as a run's JSON has them
    digest.update(repr([facts, PairShape(head="", embed=0, **read), length]).encode())
    tower = model.vision.tower if frozen.images else getattr(model.text, "tower", None)
    for tensor in tower.state_dict().values():  # type: ignore[union-attr]
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:24]


class _Features(CacheWriter):
    """What the heads of frozen towers read."""

    def __init__(
        self,
        source: Source,
        model: Model,
        recipe: Recipe,
        pipeline: TextPipeline,
        frozen: Frozen,
        autocast: Autocast,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(source, recipe.frame, model, frozen.images, frozen.texts)
        self.recipe, self.pipeline, self.frozen, self.autocast, self.dtype = recipe, pipeline, frozen, autocast, dtype

    def key(self) -> str:
        return key(self.source, self.model, self.recipe, self.frozen, self.dtype)

    def place(self, root: Path) -> Path:
        """Patch tokens serve those who do not read them, too."""
        whole = root / key(self.source, self.model, self.recipe, replace(self.frozen, patches=True), self.dtype)
        return whole if (whole / DONE).is_file() else root / self.key()

    def of_images(self, images: torch.Tensor) -> torch.Tensor:
        """[n, T, D]."""
        with self.autocast():
            states: torch.Tensor = self.model.vision.read(images.float().div_(127.5).sub_(1))
        return (states if self.frozen.patches else states[:, : self.model.vision.summary]).to(self.dtype)

    def of_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """[n, D]; texts of like length together, as padding costs what a token does."""
        assert self.model.text is not None
        ids = np.stack([self.pipeline.fixed(text) for text in texts])
        lengths = (ids != self.pipeline.policy.pad_id).sum(1)
        order, parts = np.argsort(lengths, kind="stable"), []
        for start in range(0, len(ids), TEXTS_AT_ONCE):
            some = order[start : start + TEXTS_AT_ONCE]
            shown = torch.from_numpy(ids[some, : max(1, lengths[some].max())]).to(self.device)
            with self.autocast():
                parts.append(self.model.text.read(shown)[:, 0])  # type: ignore[operator]
        return torch.cat(parts)[torch.from_numpy(np.argsort(order)).to(self.device)].to(self.dtype)
