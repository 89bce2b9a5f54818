"""Frozen towers are encoded once: what their heads read lies in memory-mapped files that runs share.

A tower that is not trained gives an image or a text the same states in every epoch. They are written once, in the run's
precision, and read by every later step; a run that is killed while it writes goes on where it stopped.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
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
from opensiglip.data.fields.references import References
from opensiglip.data.fields.states import ImageStates, TextStates
from opensiglip.data.sources.cached import CachedSource, TextInput, texts_in
from opensiglip.data.sources.referenced import ReferencedSource
from opensiglip.data.text import TextPipeline
from opensiglip.distributed import from_first
from opensiglip.inference.device import Autocast
from opensiglip.models.model import Model
from opensiglip.models.pretrained_towers import PretrainedText, PretrainedVision, is_frozen
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

    @property
    def any(self) -> bool:
        """Is there one?"""
        return self.images or self.texts

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
        plain = reads <= {Images, Texts, Captions, References, Origins, CachedRows}
        images, texts = plain and images and Images in reads, plain and texts and Texts in reads
        head = model.vision.head if images else None
        return cls(images, texts, model.decoder is not None or (images and (head is None or head.reads_patches)))


class Places(NamedTuple):
    """Where states are found: a file of lines for each source, and the towers' folders."""

    lines: Sequence[Path | None]
    images: Path | None
    texts: Path | None


@dataclass(frozen=True)
class Towers:
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


class FeatureCache:
    """The states of a run's frozen towers on disk, of all that its sources show, written when they are first read."""

    def __init__(
        self,
        model: Model,
        recipe: Recipe,
        sources: Sequence[Source],
        pipeline: TextPipeline,
        *,
        root: Path,
        limit: float,
        accelerator: Accelerator,
        precision: str,
    ) -> None:
        """`recipe`, `sources`: the run's, without what a reference adds. `limit`: most gigabytes."""
        self.model, self.recipe, self.sources, self.root, self.limit = model, recipe, sources, root, limit
        self.accelerator, self.precision, self.read = accelerator, precision, TextInput(pipeline, padded=False)
        self.frozen = Frozen.of(model, recipe)
        self.towers = Towers(model, recipe, precision, autocast(precision, accelerator.device), root)
        self.wanted = gigabytes(model, recipe, sources, self.frozen, self.towers.dtype)
        self.why = from_first(self._why())
        self.places: Places | None = None  # once all is written
        if self.frozen.any:
            model.to(accelerator.device)

    def _why(self) -> str | None:
        """Why there is none, where towers are frozen."""
        if self.wanted > self.limit:
            return f"{self.wanted:.1f} GB are more than --features-gb {self.limit:g}"
        if not room_for(self.root, self.wanted):
            return f"{self.wanted:.1f} GB are more than the disk of {self.root} has left"
        return None

    def shared_with(self, model: Model) -> Frozen:
        """Which states another model's towers would make as well; of images, if it sees them in the same frame."""
        if self.why is not None:
            return Frozen(images=False, texts=False)
        ours, theirs, vision = self.towers, replace(self.towers, model=model), model.vision
        readable = isinstance(vision, PretrainedVision) and vision.head is not None and self.frozen.images
        images = readable and (self.frozen.patches or not vision.head.reads_patches)
        texts = isinstance(model.text, PretrainedText) and self.frozen.texts
        return Frozen(
            images and theirs.images(patches=True).folder == ours.images(patches=True).folder,
            texts and theirs.texts().folder == ours.texts().folder,
        )

    @cached_property
    def shown(self) -> list[ShownImages]:
        """The images of each source, where their states are read. For the main process, as all that follows."""
        return [ShownImages(one, self.recipe.frame, self.root) for one in self.sources] if self.frozen.images else []

    @cached_property
    def image_towers(self) -> list[Tower]:
        """The image tower as it is read and, where no patch tokens are, with them: states of either kind serve."""
        towers, whole = [self.towers.images(patches=self.frozen.patches)], replace(self.frozen, patches=True)
        if not self.frozen.patches:
            size = gigabytes(self.model, self.recipe, self.sources, whole, self.towers.dtype)
            towers += [self.towers.images(patches=True)] if size <= self.limit else []
        return towers

    def write(self) -> Places:
        """Encode what is not known yet, once in a process; where the states are."""
        if self.places is not None:
            return self.places
        places = Places([None] * len(self.sources), None, None)
        if self.frozen.images:
            images = max(self.image_towers, key=lambda tower: tower.known(self.shown))
            write_images(self.shown, images)
            places = Places([one.file for one in self.shown], images.folder, None)
        if self.frozen.texts:
            texts, shown = self.towers.texts(), self.shown
            said = (texts_in(one.lines) for one in shown) if shown else (texts_of(source) for source in self.sources)
            write_texts(chain.from_iterable(said), texts, self.read)
            places = places._replace(texts=texts.folder)
        self.places = places
        return places


def with_features(
    recipe: Recipe, sources: Sequence[Source], cache: FeatureCache, *, asked: bool = False
) -> tuple[Recipe, list[Source]]:
    """The recipe and its sources, reading states from the cache where towers are frozen; else both as they are.

    recipe, sources: the run's, with what references read. `asked`: for them by --features, so that it is said where
    there are none. The main process encodes what is missing while the other ranks wait.
    """
    accelerator, model, frozen = cache.accelerator, cache.model, Frozen.of(cache.model, recipe)
    if not frozen.any:
        if asked:
            why = "no tower of --vision or --text is frozen, or the recipe reads more than images and texts"
            accelerator.print(f"features    --features is not used: {why}", flush=True)
        return recipe, list(sources)
    if cache.why is not None:
        accelerator.print(f"features    not cached: {cache.why}; towers encode every batch", flush=True)
        return recipe, list(sources)
    places = from_first(cache.write() if accelerator.is_main_process else None)
    assert places is not None
    accelerator.print(f"features    {cache.wanted:.2f} GB of images' states in {cache.root}", flush=True)
    tokens = None if frozen.patches or not frozen.images else model.vision.summary
    texts = None if places.texts is None else (places.texts, cache.read)
    cached: list[Source] = []
    for source, one, lines in zip(sources, cache.sources, places.lines, strict=True):
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
