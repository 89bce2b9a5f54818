"""A folder of images, embedded once, to be searched by text or by image."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from opensiglip.errors import UserError
from opensiglip.inference.images import Picture, find_files, read_one
from opensiglip.inference.predictor import BATCH, Predictor

MOST = 5_000  # images of a folder
THUMB = 256  # pixels of the longer side


@dataclass(frozen=True)
class Hit:
    """An image of the folder, and its cosine with what was searched for."""

    path: Path
    score: float


class Index:
    """Embeddings [I, D] of a folder's images; those that can't be read are left out, with the reason."""

    def __init__(self, predictor: Predictor, folder: str) -> None:
        """Embed the folder. Raises UserError if it has no image that can be read, or too many."""
        files = find_files([folder])
        if len(files) > MOST:
            raise UserError(
                f"{folder} has {len(files)} images; the search holds at most {MOST}, give a smaller folder."
            )
        self.predictor = predictor
        self.files: list[Path] = []
        self.left_out: dict[Path, str] = {}
        parts: list[Tensor] = []
        for at in range(0, len(files), BATCH):
            images = []
            for path in files[at : at + BATCH]:
                try:
                    images.append(read_one(path))
                    self.files.append(path)
                except UserError as reason:
                    self.left_out[path] = str(reason)
            if images:
                parts.append(predictor.embed_images(images))
        if not parts:
            raise UserError(f"none of the images in {folder} can be read; check the folder.")
        self.embedded = torch.cat(parts)

    def by_text(self, text: str, count: int = 8) -> list[Hit]:
        """The images nearest to a text, best first. Raises UserError without a text tower."""
        return self._nearest(self.predictor.embed_texts([text])[0], count)

    def by_image(self, image: Picture, count: int = 8) -> list[Hit]:
        """The images nearest to an image, best first."""
        return self._nearest(self.predictor.embed_images([image])[0], count)

    def _nearest(self, wanted: Tensor, count: int) -> list[Hit]:
        scores, places = (self.embedded @ wanted).topk(min(count, len(self.files)))
        return [Hit(self.files[p], s) for s, p in zip(scores.tolist(), places.tolist(), strict=True)]


def thumbnails(hits: Sequence[Hit]) -> list[tuple[Image.Image, str]]:
    """A small picture of each, and its name with the score."""
    shown = []
    for hit in hits:
        picture = functional.to_pil_image(read_one(hit.path))
        picture.thumbnail((THUMB, THUMB))
        shown.append((picture, f"{hit.path.name}  {hit.score:.3f}"))
    return shown
