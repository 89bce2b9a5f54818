"""Frozen towers are encoded once: what their heads read lies in memory-mapped files that runs share.

A tower that is not trained gives an image or a text the same states in every epoch. They are written once, in the run's
precision, and read by every later step; a run that is killed while it writes goes on where it stopped.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from opensiglip.data.example import Source
from opensiglip.data.fields.captions import Captions
from opensiglip.data.fields.curation import CachedRows, Origins
from opensiglip.data.fields.field import Field, Images, Texts
from opensiglip.data.fields.frame import Frame
from opensiglip.data.fields.states import ImageStates, TextStates
from opensiglip.data.sources.cached import CachedSource, TextInput, texts_in
from opensiglip.data.sources.referenced import ReferencedSource, without_rows
from opensiglip.data.text import TextPipeline
from opensiglip.distributed import from_first
from opensiglip.inference.device import Autocast
from opensiglip.models.model import Model
from opensiglip.models.pretrained_towers import is_frozen
from opensiglip.recipes import Recipe
from opensiglip.training.cache_writer import Tower, digest_of, room_for, texts_of, write_images, write_texts
from opensiglip.training.precision import autocast
from opensiglip.training.shown_images import ShownImages

TEXTS_AT_ONCE = 64  # of like length


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
    towers = _Towers(model, recipe, precision, autocast(precision, accelerator.device), root)
    wanted = gigabytes(model, recipe, sources, frozen, towers.dtype)
    if wanted > limit or not room_for(root, wanted):
        why = f"more than --features-gb {limit:g}" if wanted > limit else f"more than the disk of {root} has left"
        accelerator.print(f"features    not cached: {wanted:.1f} GB are {why}; towers encode every batch", flush=True)
        return recipe, list(sources)
    plain = [without_rows(source) for source in sources]
    read = TextInput(pipeline, padded=False)
    places = from_first(towers.write(plain, frozen, read, limit) if accelerator.is_main_process else None)
    assert places is not None
    accelerator.print(f"features    {wanted:.2f} GB of images' states in {root}", flush=True)
    tokens = None if frozen.patches or not frozen.images else model.vision.summary
    texts = None if places.texts is None else (places.texts, read)
    cached: list[Source] = []
    for source, one, lines in zip(sources, plain, places.lines, strict=True):
        over = CachedSource(one, lines, places.images, texts, side=recipe.frame.pixels, tokens=tokens)
        cached.append(source.over(over) if isinstance(source, ReferencedSource) else over)
    return replace(recipe, fields=with_states(recipe.fields, frozen)), cached


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


class _Places(NamedTuple):
    """Where states are found: a file of lines for each source, and the towers' folders."""

    lines: Sequence[Path | None]
    images: Path | None
    texts: Path | None


@dataclass(frozen=True)
class _Towers:
    """The frozen towers of a model, as a cache writes what they make."""

    model: Model
    recipe: Recipe
    precision: str
    autocast: Autocast
    root: Path

    @property
    def dtype(self) -> torch.dtype:
        """Of the states."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def write(self, sources: Sequence[Source], frozen: Frozen, read: TextInput, limit: float) -> _Places:
        """Encode what is not known yet."""
        shown, places = list[ShownImages](), _Places([None] * len(sources), None, None)
        if frozen.images:
            shown = [ShownImages(source, self.recipe.frame, self.root) for source in sources]
            images = self._images(shown, frozen, limit)
            write_images(shown, images)
            places = _Places([one.file for one in shown], images.folder, None)
        if frozen.texts:
            texts = self.texts()
            said = (texts_in(one.lines) for one in shown) if shown else (texts_of(source) for source in sources)
            write_texts(chain.from_iterable(said), texts, read)
            places = places._replace(texts=texts.folder)
        return places

    def _images(self, shown: Sequence[ShownImages], frozen: Frozen, limit: float) -> Tower:
        """The image tower. Where no patch tokens are read, states with them serve, too, if they are of more images."""
        towers, whole = [self.images(patches=frozen.patches)], replace(frozen, patches=True)
        sources = [one.source for one in shown]
        if not frozen.patches and gigabytes(self.model, self.recipe, sources, whole, self.dtype) <= limit:
            towers.append(self.images(patches=True))
        return max(towers, key=lambda tower: tower.known(shown))

    def images(self, patches: bool) -> Tower:
        """Mean and class token [n, S, D] of images, with `patches` the patch tokens too: [n, S + N, D]."""
        vision, frame, pair = self.model.vision, self.recipe.frame, self.model.architecture.foreign
        assert pair is not None
        facts = [str(frame), repr(frame), list(pair.mean), list(pair.std), patches, self.precision]

        def states(images: Tensor) -> Tensor:
            with self.autocast():
                found: Tensor = vision.read(images.float().div_(127.5).sub_(1))
            return (found if patches else found[:, : vision.summary]).to(self.dtype)

        return Tower(self.root / f"images-{digest_of(facts, vision.tower)}", self.model, states)

    def texts(self) -> Tower:
        """The pooled state [n, D] of texts."""
        text: Any = self.model.text
        facts = [text.pooling, text.pad_id, self.precision]

        def states(ids: Tensor) -> Tensor:
            """Texts of like length together, as padding costs what a token does."""
            lengths = (ids != text.pad_id).sum(1)
            order, parts = lengths.argsort(stable=True), []
            for some in order.split(TEXTS_AT_ONCE):
                with self.autocast():
                    parts.append(text.read(ids[some, : max(1, int(lengths[some].max()))])[:, 0])
            return torch.cat(parts)[order.argsort()].to(self.dtype)

        return Tower(self.root / f"texts-{digest_of(facts, text.tower)}", self.model, states)
