"""A reference's rows of a whole source, written once: they never change, so a later epoch or run only reads them."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from opensiglip.data.example import Source
from opensiglip.data.fields.curation import CachedRows
from opensiglip.data.fields.frame import Frame, Geometry
from opensiglip.data.sources.referenced import ReferencedSource
from opensiglip.training.cache_writer import DONE, CacheWriter, encoded_once, room_for
from opensiglip.training.curation.reference import Reference
from opensiglip.training.record import fingerprints

TEXTS = 64  # of a source by which a tokenizer is known


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

    frame: the recipe's. visits: of examples in the whole run; fewer than there are examples pay for no cache, unless
    another run has written it. limit: most gigabytes. The rows are those of no cache, to the bit.
    """
    count = sum(len(source) for source in sources)
    writers = [RowsWriter(reference, source, precision) for source in sources]
    written = all((writer.place(root) / DONE).is_file() for writer in writers)
    row = reference.of_texts(torch.from_numpy(reference.pipeline.fixed(""))[None].to(accelerator.device))
    size = 2 * count * row.nbytes / 1e9  # of a text an image
    why = None
    if frame.crop_area < 1 or frame.flip > 0:
        why = "images are cropped or mirrored anew at each visit"
    elif not isinstance(reference.frame, Frame):
        why = "the reference sees images in their own aspect ratio"
    elif not written and visits <= count:
        why = f"a run of {visits} visits sees few of {count} examples twice"
    elif size > limit:
        why = f"{size:.1f} GB are more than --features-gb {limit:g}"
    elif not written and not room_for(root, size):
        why = f"the disk of {root} has too little left for {size:.1f} GB"
    if why is not None:
        accelerator.print(f"{reference.role:<11} encodes every batch: {why}", flush=True)
        return reference, list(sources)
    places = encoded_once(writers, root, accelerator)
    accelerator.print(f"{reference.role:<11} reads cached embeddings of {count} examples from {root}", flush=True)
    side, role = reference.frame.pixels, reference.role
    read = [ReferencedSource(source, [place], side, role) for source, place in zip(sources, places, strict=True)]
    return replace(reference, fields=[CachedRows(role, reference.writes)]), list(read)


class RowsWriter(CacheWriter):
    """(t x, b) of each image and (y, 1) of each text, as `Reference.embed` makes them."""

    def __init__(self, reference: Reference, source: Source, precision: str) -> None:
        super().__init__(source, reference.frame, reference.model, images=True, texts=True)
        self.reference, self.precision = reference, precision

    def key(self) -> str:
        """Of weights, tokenizer, frame, precision and data."""
        pipeline, digest = self.reference.pipeline, hashlib.sha256()
        some = [pipeline.fixed(text).tolist() for text, _ in zip(self.source.texts(), range(TEXTS), strict=False)]
        facts = [self.source.name, fingerprints([self.source]), repr(self.frame), self.precision, pipeline.policy, some]
        digest.update(repr(facts).encode())
        for tensor in self.model.state_dict().values():
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return f"reference-{digest.hexdigest()[:24]}"

    def of_images(self, images: torch.Tensor) -> torch.Tensor:
        return self.reference.of_images({"image": images})

    def of_texts(self, texts: Sequence[str]) -> torch.Tensor:
        return self.reference.of_texts(
            torch.from_numpy(np.stack([self.reference.pipeline.fixed(text) for text in texts])).to(self.device)
        )
