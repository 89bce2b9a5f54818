"""A reference's rows of images and texts, written once: they never change, so a later epoch or run only reads them.

Where its towers are those of the learner, of which a cache holds the states, only its heads are computed.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from opensiglip.data.example import Source
from opensiglip.data.fields.curation import CachedRows
from opensiglip.data.fields.frame import Frame
from opensiglip.data.fields.states import IMAGE, TEXTS
from opensiglip.data.sources.cached import TextInput, texts_in
from opensiglip.data.sources.referenced import ReferencedSource, without_rows
from opensiglip.distributed import from_first
from opensiglip.training.cache_writer import (
    Tower,
    digest_of,
    room_for,
    write_from_states,
    write_images,
    write_texts,
)
from opensiglip.training.curation.reference import Reference, same_view
from opensiglip.training.feature_cache import FeatureCache, Frozen
from opensiglip.training.shown_images import ShownImages


def with_rows(
    reference: Reference, sources: Sequence[Source], visits: int, cache: FeatureCache
) -> tuple[Reference, list[Source]]:
    """The reference and the sources, reading rows from disk; both as they are where that does not pay or fit.

    visits: of examples in the whole run; unless they are more than the images to encode, that does not pay. cache: of
    the learner's towers. Rows by the reference's own towers are those of no cache, to the bit; rows from the cache's
    states are those of the precision in which it holds them.
    """
    accelerator, frame, root = cache.accelerator, cache.recipe.frame, cache.root
    count = sum(len(source) for source in sources)
    shared = cache.shared_with(reference.model)
    shared = replace(shared, images=shared.images and same_view(frame, reference.frame))
    images, texts = towers(reference, cache.precision, root, shared)
    read = TextInput(reference.pipeline, padded=not shared.texts)
    row = reference.of_texts({"text": torch.from_numpy(reference.pipeline.fixed(""))[None].to(accelerator.device)})
    size = 2 * count * row.nbytes / 1e9  # of a text an image
    why, shown, unknown = None, list[ShownImages](), count
    if frame.crop_area < 1 or frame.flip > 0:
        why = "images are cropped or mirrored anew at each visit"
    elif not isinstance(reference.frame, Frame):
        why = "the reference sees images in their own aspect ratio"
    elif size > cache.limit:
        why = f"{size:.1f} GB are more than --features-gb {cache.limit:g}"
    elif accelerator.is_main_process:
        encoders = cache.image_towers if shared.images else [images]
        if visits > count or any(tower.folder.is_dir() for tower in encoders):
            plain = [without_rows(source) for source in sources]
            shown = cache.shown if shared.images else [ShownImages(one, reference.frame, root) for one in plain]
            unknown = count - max(tower.known(shown) for tower in encoders)
    unknown = from_first(unknown)
    if why is None and unknown >= visits:
        why = f"a run of {visits} visits sees few of {unknown} examples twice"
    elif why is None and not room_for(root, size * unknown / count):
        why = f"the disk of {root} has too little left for {size:.1f} GB"
    if why is not None:
        accelerator.print(f"{reference.role:<11} encodes every batch: {why}", flush=True)
        return reference, list(sources)
    if accelerator.is_main_process:
        write_rows(shown, images, texts, read, shared, cache)
    files = from_first([one.file for one in shown])
    kinds = [kind for kind, yes in (("images", shared.images), ("texts", shared.texts)) if yes]
    way = f"; of {' and '.join(kinds)} its heads read the learner's states" if kinds else ""
    accelerator.print(f"{reference.role:<11} reads cached embeddings of {count} examples from {root}{way}", flush=True)
    found = [
        ReferencedSource(source, lines, images.folder, (texts.folder, read), reference.role)
        for source, lines in zip(sources, files, strict=True)
    ]
    return replace(reference, fields=[CachedRows(reference.role, reference.writes)]), list(found)


def write_rows(
    shown: Sequence[ShownImages], images: Tower, texts: Tower, read: TextInput, shared: Frozen, cache: FeatureCache
) -> None:
    """Make the rows that are not known yet, after the learner's states where these are shared."""
    if shared.images:
        states = cache.write().images
        assert states is not None
        write_from_states("images", (key for one in shown for key in one.keys), states, images)
    else:
        write_images(shown, images)
    said = chain.from_iterable(texts_in(one.lines) for one in shown)
    if shared.texts:
        every, tower = dict.fromkeys(["", *said]), cache.towers.texts()
        write_texts(every, tower, read)  # by its own ids: it may read more or less of a text than the learner
        write_from_states("texts", map(read.key, every), tower.folder, texts)
    else:
        write_texts(said, texts, read)


def towers(reference: Reference, precision: str, root: Path, shared: Frozen) -> tuple[Tower, Tower]:
    """(t x, b) of each image and (y, 1) of each text, as `Reference.embed` makes them; from states where `shared`."""
    facts = [repr(reference.frame), precision, reference.pipeline.policy, reference.model.architecture]
    name, model = digest_of(facts, reference.model), reference.model

    def place(kind: str, of_states: bool) -> Path:
        return root / f"reference-{kind}-{name}{'-heads' if of_states else ''}"

    def of_images(images: Tensor) -> Tensor:
        return reference.of_images({IMAGE if shared.images else "image": images})

    def of_texts(texts: Tensor) -> Tensor:
        return reference.of_texts({TEXTS: texts[:, None]} if shared.texts else {"text": texts})

    return (
        Tower(place("images", shared.images), model, of_images),
        Tower(place("texts", shared.texts), model, of_texts),
    )
