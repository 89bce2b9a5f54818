"""Embeddings of a folder's images on disk: parquet with one row per image, and a faiss index of the vectors.

It is written in parts, so that an interrupted build resumes; a repeated build embeds only new or changed files.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from opensiglip.disk import refusals, whole_file, writable
from opensiglip.errors import UserError
from opensiglip.inference.images import SUFFIXES, load_image
from opensiglip.inference.index_rows import File, read_rows, read_table, write_rows
from opensiglip.inference.search import Hit
from opensiglip.json_file import load_json, write_json

ABOUT, ROWS, VECTORS = "index.json", "embeddings.parquet", "vectors.faiss"
PARTS = "part-*.parquet"
PART = 1024  # images per part: the most that a kill can lose
EXACT = 200_000  # exact search up to this many vectors; above, an HNSW graph
NEIGHBOURS, BUILD, WALK = 32, 80, 128  # HNSW: links per vector, width of the search at build and at query
SAME = 0.999  # least cosine of the probe image's vectors for the same model
THREADS = min(8, os.cpu_count() or 1)

Say = Callable[[str], object]


class Embeds(Protocol):
    """Something that embeds images, such as an `Encoder`."""

    @property
    def name(self) -> str: ...

    def framed(self, images: Sequence[Tensor]) -> list[Tensor]: ...

    def embed_framed(self, framed: Sequence[Tensor]) -> Tensor: ...

    def cut(self, embeddings: Tensor, dim: int | None) -> Tensor: ...


@dataclass(frozen=True)
class IndexFolder:
    """INDEX/: index.json (folder, model), embeddings.parquet, vectors.faiss; part-N.parquet while it is built."""

    path: Path
    about: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> "IndexFolder":
        """Open a built index. Raises UserError."""
        place = Path(path)
        if not (place / ABOUT).is_file():
            raise UserError(
                f"{path} is not an index; make one with `opensiglip search-index MODEL FOLDER --out INDEX`."
            )
        about = read_about(place)
        if not (place / VECTORS).is_file():
            raise UserError(f"{path} is incomplete; run its `opensiglip search-index` again.")
        return cls(place, about)

    @classmethod
    def build(
        cls,
        encoder: Embeds,
        folder: str | Path,
        out: str | Path,
        say: Say = lambda words: None,
        dim: int | None = None,
    ) -> "IndexFolder":
        """Embed new images below a folder, remove missing ones and write the index; damaged rows are embedded again.

        Vectors have `dim` dimensions, by default all. Raises UserError as `check` does, and if `out` belongs to another
        model or width.
        """
        source, place = check(folder, out), Path(out)
        about: dict[str, Any] = {"folder": str(source), "model": _spec(encoder.name), "probe": probe(encoder, dim)}
        width = len(about["probe"])
        if (place / ABOUT).is_file():
            check_model(place, read_about(place), about["probe"])
        files = [File.found(source, path) for path in images_below(source)]
        with refusals(place, "make room, or mend the permission, and give the command again"):
            place.mkdir(parents=True, exist_ok=True)
            write_json(place / ABOUT, about)
            known: dict[File, np.ndarray | str] = {}
            parts = sorted(place.glob(PARTS))
            for path in [*([place / ROWS] if (place / ROWS).exists() or (place / VECTORS).exists() else []), *parts]:
                try:
                    known |= read_rows(path, width)
                except UserError:
                    say(f"{path} can't be read; its images are embedded again")
            wanted = [file for file in files if file not in known]
            say(f"{len(files)} images, {len(files) - len(wanted)} of them done before")
            part, unreadable = len(parts), 0
            with ThreadPoolExecutor(THREADS) as pool:
                for start in range(0, len(wanted), PART):
                    some = wanted[start : start + PART]
                    rows = embedded(encoder, source, some, pool, dim)
                    write_rows(place / f"part-{part:06d}.parquet", rows, width)
                    known |= rows
                    part += 1
                    unreadable += sum(isinstance(row, str) for row in rows.values())
                    but = f", {unreadable} can't be read" if unreadable else ""
                    say(f"{start + len(some) - unreadable} of {len(wanted)} embedded{but}")
            (place / VECTORS).unlink(missing_ok=True)  # it must not outlive its rows
            write_rows(place / ROWS, {file: known[file] for file in files}, width)
            readable = [vector for file in files if isinstance(vector := known[file], np.ndarray)]
            if not readable:
                raise UserError(f"none of the images below {folder} can be read; check the folder.")
            write_vectors(place / VECTORS, np.stack(readable))
            for path in place.glob(PARTS):
                path.unlink()
        return cls.open(place)

    @cached_property
    def rows(self) -> dict[File, np.ndarray | str]:
        """A unit vector [D] float32 for each image, or the reason why it could not be read."""
        return read_rows(self.path / ROWS, len(self.about["probe"]))

    @cached_property
    def files(self) -> list[Path]:
        """The images in the order of the vectors."""
        root = Path(self.about["folder"])
        table = read_table(self.path / ROWS, len(self.about["probe"]), ["path", "reason"])
        paths, reasons = table["path"].to_pylist(), table["reason"].to_pylist()
        return [root / path for path, reason in zip(paths, reasons, strict=True) if reason is None]

    @property
    def unreadable(self) -> dict[Path, str]:
        """The images that can't be read, with the reason."""
        root = Path(self.about["folder"])
        return {root / file.path: reason for file, reason in self.rows.items() if isinstance(reason, str)}

    @cached_property
    def vectors(self) -> Any:
        """The faiss index. Raises UserError if it can't be read."""
        try:
            found = library().read_index(str(self.path / VECTORS))
        except RuntimeError:
            raise UserError(f"{self.path / VECTORS} can't be read; run its `opensiglip search-index` again.") from None
        if found.ntotal != len(self.files):
            raise UserError(f"{self.path} holds parts of two builds; run its `opensiglip search-index` again.")
        return found

    @property
    def dim(self) -> int:
        """Dimensions of a vector."""
        return int(self.vectors.d)

    def nearest(self, query: Tensor, count: int) -> list[Hit]:
        """The images with the highest cosine to the unit embedding [D], best first. Raises UserError."""
        if len(query) != self.dim:
            raise UserError(
                f"{self.path} holds vectors of {self.dim} numbers, and the model gives {len(query)}; ask the "
                f"model that it was made with, {self.about['model']}."
            )
        scores, places = self.vectors.search(query.float().numpy()[None], min(count, self.vectors.ntotal))
        pairs = zip(scores[0].tolist(), places[0].tolist(), strict=True)
        return [Hit(self.files[place], score) for score, place in pairs if place >= 0]


def check(folder: str | Path, out: str | Path) -> Path:
    """The absolute path of a folder, after all checks for an index in `out` that need no model.

    Raises UserError if it has no image, or if `out` can't be written or contains something else.
    """
    source, place = Path(folder).expanduser().resolve(), Path(out)
    if not source.is_dir():
        raise UserError(f"there is no folder {folder}; check the path.")
    if next(images_below(source), None) is None:
        raise UserError(f"no image below {folder}; give a folder of image files.")
    writable(place)
    others = [path.name for name in (ROWS, VECTORS, PARTS) for path in place.glob(name)]
    if (place / ABOUT).exists():
        if (before := read_about(place)["folder"]) != str(source):
            raise UserError(f"--out {place} is the index of {before}; name another for {source}.")
    elif others:
        raise UserError(
            f"--out {place} holds {others[0]} but no {ABOUT}; if it was an index, delete it, else name another."
        )
    return source


def read_about(place: Path) -> dict[str, Any]:
    """The content of index.json. Raises UserError if it is not as `build` writes it."""
    path = place / ABOUT
    try:
        about = load_json(path)
        whole = (
            isinstance(about["folder"], str) and isinstance(about["model"], str) and isinstance(about["probe"], list)
        )
        if whole and all(isinstance(value, float) and isfinite(value) for value in about["probe"]):
            return about
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UserError(
        f"{path} is damaged, or does not belong to an index: delete {place} and run its `opensiglip search-index` "
        "again, or name another folder."
    )


def library() -> Any:
    """faiss, which only an index on disk needs. Raises UserError if it is not installed."""
    try:
        import faiss
    except ImportError:
        raise UserError('an index needs faiss; `pip install "opensiglip[search]"`.') from None
    return faiss


def images_below(folder: Path) -> Iterator[Path]:
    """The image files of a folder and those below it, in order; links to folders are not followed."""
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(root, name)
            if path.suffix.lower() in SUFFIXES and path.is_file():
                yield path


def embedded(
    encoder: Embeds, folder: Path, files: Sequence[File], pool: ThreadPoolExecutor, dim: int | None
) -> dict[File, np.ndarray | str]:
    """Each file's unit vector [D] float32, or the reason why it can't be read; decoded and framed in threads."""

    def read(file: File) -> Tensor | str:
        try:
            return encoder.framed([load_image(folder / file.path)])[0]
        except UserError as error:
            return str(error)

    found = dict(zip(files, pool.map(read, files), strict=True))
    readable = [file for file, image in found.items() if not isinstance(image, str)]
    images = [image for image in found.values() if not isinstance(image, str)]
    vectors = list(encoder.cut(encoder.embed_framed(images), dim)) if images else []
    rows: dict[File, np.ndarray | str] = {file: reason for file, reason in found.items() if isinstance(reason, str)}
    return rows | {file: vector.numpy() for file, vector in zip(readable, vectors, strict=True)}


def write_vectors(path: Path, vectors: np.ndarray) -> None:
    """Unit vectors [N, D] float32 as a faiss index by cosine: exact, or a graph for many vectors."""
    faiss = library()
    if len(vectors) <= EXACT:
        index = faiss.IndexFlatIP(vectors.shape[1])
    else:
        index = faiss.IndexHNSWFlat(vectors.shape[1], NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = BUILD, WALK
    index.add(vectors)
    with whole_file(path) as part:
        faiss.write_index(index, str(part))


def probe(encoder: Embeds, dim: int | None) -> list[float]:
    """The vector of one fixed image, which identifies a model whatever its name."""
    ramp = np.linspace(0, 255, 64 * 64 * 3).astype(np.uint8).reshape(64, 64, 3)
    vector = encoder.cut(encoder.embed_framed(encoder.framed([load_image(ramp)])), dim)[0]
    return [round(value, 6) for value in vector.tolist()]


def check_model(place: Path, before: dict[str, Any], now: list[float]) -> None:
    """Raises UserError if an index belongs to another model or width than this probe vector."""
    if len(before["probe"]) != len(now):
        raise UserError(
            f"--out {place} holds vectors of {len(before['probe'])} numbers, and these have {len(now)}; name another."
        )
    if float(np.dot(before["probe"], now)) < SAME:
        raise UserError(f"--out {place} was made with another model, {before['model']}; name another index.")


def _spec(name: str) -> str:
    """The name that opens the model from any folder."""
    return str(Path(name).resolve()) if Path(name).exists() else name
