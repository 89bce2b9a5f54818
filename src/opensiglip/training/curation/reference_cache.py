"""A reference's rows of images and texts, written once: they never change, so a later epoch or run only reads them."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch
from accelerate import Accelerator

from opensiglip.data.example import Source
from opensiglip.data.fields.curation import CachedRows
from opensiglip.data.fields.frame import Frame, Geometry
from opensiglip.data.sources.cached import TextInput, texts_in
from opensiglip.data.sources.referenced import ReferencedSource, without_rows
from opensiglip.distributed import from_first
from opensiglip.training.cache_writer import Tower, digest_of, room_for, write_images, write_texts
from opensiglip.training.curation.reference import Reference
from opensiglip.training.shown_images import ShownImages


def with_rows(
    reference: Reference,
    sources: Sequence[Source],
    frame: Geometry,
    visits: int,
    *,
    root: Path,
    limit: float,
    accelerator: Accelerator,
    precision: str,
) -> tuple[Reference, list[Source]]:
    """The reference and the sources, reading rows from `root`; both as they are where that does not pay or fit.

    frame: the recipe's. visits: of examples in the whole run; unless they are more than the images to encode, that does
    not pay. limit: most gigabytes. The rows are those of no cache, to the bit.
    """
    count = sum(len(source) for source in sources)
    images, texts = towers(reference, precision, root)
    row = reference.of_texts(torch.from_numpy(reference.pipeline.fixed(""))[None].to(accelerator.device))
    size = 2 * count * row.nbytes / 1e9  # of a text an image
    why, shown = None, list[ShownImages]()
    if frame.crop_area < 1 or frame.flip > 0:
        why = "images are cropped or mirrored anew at each visit"
    elif not isinstance(reference.frame, Frame):
        why = "the reference sees images in their own aspect ratio"
    elif size > limit:
        why = f"{size:.1f} GB are more than --features-gb {limit:g}"
    elif accelerator.is_main_process and (visits > count or images.folder.is_dir()):
        shown = [ShownImages(without_rows(source), reference.frame, root) for source in sources]
    unknown = from_first(count - images.known(shown))
    if why is None and unknown >= visits:
        why = f"a run of {visits} visits sees few of {unknown} examples twice"
    elif why is None and not room_for(root, size * unknown / count):
        why = f"the disk of {root} has too little left for {size:.1f} GB"
    if why is not None:
        accelerator.print(f"{reference.role:<11} encodes every batch: {why}", flush=True)
        return reference, list(sources)
    read = TextInput(reference.pipeline, padded=True)
    if accelerator.is_main_process:
        write_images(shown, images)
        write_texts(chain.from_iterable(texts_in(one.lines) for one in shown), texts, read)
    files = from_first([one.file for one in shown])
    accelerator.print(f"{reference.role:<11} reads cached embeddings of {count} examples from {root}", flush=True)
    found = [
        ReferencedSource(source, lines, images.folder, (texts.folder, read), reference.role)
        for source, lines in zip(sources, files, strict=True)
    ]
    return replace(reference, fields=[CachedRows(reference.role, reference.writes)]), list(found)


def towers(reference: Reference, precision: str, root: Path) -> tuple[Tower, Tower]:
    """(t x, b) of each image and (y, 1) of each text, as `Reference.embed` makes them."""
    facts = [repr(reference.frame), precision, reference.pipeline.policy, reference.model.architecture]
    name = digest_of(facts, reference.model)
    return (
        Tower(
            root / f"reference-images-{name}", reference.model, lambda images: reference.of_images({"image": images})
        ),
        Tower(root / f"reference-texts-{name}", reference.model, reference.of_texts),
    )
