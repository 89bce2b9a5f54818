"""A folder of images, embedded once, to be searched by text or by image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from opensiglip.errors import UserError
from opensiglip.inference.images import find_files, load_image

MOST = 5_000  # images of a folder


@dataclass(frozen=True)
class Hit:
    """An image of the folder, and its cosine with what was searched for."""

    path: Path
    score: float


class Searchable(Protocol):
    """Images that have been embedded: in memory (`Index`) or on disk (`IndexFolder`)."""

    @property
    def files(self) -> list[Path]: ...

    @property
    def unreadable(self) -> dict[Path, str]: ...

    @property
    def dim(self) -> int:
        """Numbers of a vector."""

    def nearest(self, query: Tensor, count: int) -> list[Hit]:
        """The images whose cosine with the unit embedding [D] is largest, best first."""


@dataclass(frozen=True)
class Index:
    """Unit embeddings [I, D] of a folder's images; those that can't be read are left out, with the reason."""

    files: list[Path]
    embeddings: Tensor
    unreadable: dict[Path, str] = field(default_factory=dict)

    @classmethod
    def build(cls, folder: str | Path, embed: Callable[[Sequence[Tensor]], Tensor], batch: int) -> "Index":
        """Embed a folder, `batch` images at a time. Raises UserError if it has no image that can be read, or too many.

        `embed`: images [3, h, w] uint8 -> unit embeddings [B, D].
        """
        found = find_files([str(folder)])
        if len(found) > MOST:
            raise UserError(
                f"{folder} has {len(found)} images and memory takes {MOST}; make an index on disk with "
                "`opensiglip search-index`."
            )
        files: list[Path] = []
        unreadable: dict[Path, str] = {}
        parts: list[Tensor] = []
        for start in range(0, len(found), batch):
            images = []
            for path in found[start : start + batch]:
                try:
                    images.append(load_image(path))
                    files.append(path)
                except UserError as error:
                    unreadable[path] = str(error)
            if images:
                parts.append(embed(images))
        if not parts:
            raise UserError(f"none of the images in {folder} can be read; check the folder.")
        return cls(files, torch.cat(parts), unreadable)

    @property
    def dim(self) -> int:
        """Numbers of a vector."""
        return self.embeddings.shape[1]

    def nearest(self, query: Tensor, count: int) -> list[Hit]:
        """The images whose cosine with the unit embedding [D] is largest, best first."""
        scores, places = (self.embeddings @ query).topk(min(count, len(self.files)))
        return [Hit(self.files[p], s) for s, p in zip(scores.tolist(), places.tolist(), strict=True)]
