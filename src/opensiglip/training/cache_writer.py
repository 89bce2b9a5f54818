"""What a frozen model makes of every image and text of a source, written once into memory-mapped files.

A writer that is killed goes on where it stopped. What is there already is used again where it still fits.
"""

import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from opensiglip.checkpoints.manifest import checksum_of
from opensiglip.data.example import BrokenExample, Example, Source, reason_of
from opensiglip.data.fields.frame import Geometry
from opensiglip.data.fields.states import as_array
from opensiglip.data.sources.cached import IMAGES_FILE, ROWS_FILE, TEXTS_FILE, CachedSource, facts_of, to_row
from opensiglip.distributed import from_first
from opensiglip.json_file import load_json, write_json
from opensiglip.models.model import Model
from opensiglip.training.lock import turn

BLOCK = 64  # examples encoded at once, and written before the next
DONE, PROGRESS = "done.json", "progress.json"
SAMPLE = 64  # images that are looked at before features are used again
SAY_EVERY = 30.0  # seconds between lines of progress


class CacheWriter(ABC):
    """Encodes a source in blocks of `BLOCK` examples, each written before the next begins."""

    def __init__(self, source: Source, frame: Geometry, model: Model, images: bool, texts: bool) -> None:
        """`images`, `texts`: which are encoded."""
        self.source, self.frame, self.model, self.images, self.texts = source, frame, model, images, texts
        self.device = next(model.parameters()).device

    @abstractmethod
    def key(self) -> str:
        """A name of what the states depend on."""

    @abstractmethod
    def of_images(self, images: torch.Tensor) -> torch.Tensor:
        """States [n, ...] of images [n, 3, H, W] uint8 on the device."""

    @abstractmethod
    def of_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """States [n, ...] of texts."""

    def place(self, root: Path) -> Path:
        """The folder of the states."""
        return root / self.key()

    @torch.no_grad()
    def write(self, folder: Path) -> None:
        """Go on from the last whole block."""
        self.folder = folder
        folder.mkdir(exist_ok=True)
        was = self.model.training
        self.model.eval()
        done: dict[str, int] = {"examples": 0, "texts": 0, "bytes": 0}
        if (self.folder / PROGRESS).is_file():
            done = load_json(self.folder / PROGRESS)
        total, began, said, first = len(self.source), time.perf_counter(), time.perf_counter(), done["examples"]
        what = {(True, True): "images and their texts", (False, True): "images' texts"}.get((self.images, self.texts))
        print(f"features    encoding {total} {what or 'images'} once, into {self.folder}", flush=True)
        with (self.folder / ROWS_FILE).open("ab") as rows:
            rows.truncate(done["bytes"])
            for start in range(done["examples"], total, BLOCK):
                done = self._block(start, min(start + BLOCK, total), done, rows)
                write_json(self.folder / PROGRESS, done)
                now = time.perf_counter()
                if now - said > SAY_EVERY:
                    said, pace = now, (done["examples"] - first) / (now - began)
                    left = (total - done["examples"]) / pace / 60
                    print(
                        f"features    {done['examples']}/{total}, {pace:.0f} a second, {left:.1f} min left", flush=True
                    )
        files = [self.folder / file for file in (IMAGES_FILE, TEXTS_FILE, ROWS_FILE)]
        write_json(self.folder / DONE, done | {"files": {f.name: checksum_of(f) for f in files if f.is_file()}})
        self.model.train(was)

    def _block(self, start: int, stop: int, done: dict[str, int], rows: Any) -> dict[str, int]:
        examples: list[Example | BrokenExample] = []
        lines: list[str] = []
        texts: list[str] = []
        for index in range(start, stop):
            example = framed(self.source, index, self.frame)
            lines.append(to_row(example, done["texts"] + len(texts)) + "\n")
            examples.append(example)
            if isinstance(example, Example):
                texts += [caption.text for caption in example.captions]
        if self.images:
            blank = torch.zeros(3, self.frame.pixels, self.frame.pixels, dtype=torch.uint8)
            images = torch.stack([blank if isinstance(e, BrokenExample) else e.image for e in examples])
            self._put(IMAGES_FILE, start, self.of_images(images.to(self.device)), len(self.source))
        if self.texts and texts:
            self._put(TEXTS_FILE, done["texts"], self.of_texts(texts), done["texts"] + len(texts))
        for line in lines:
            rows.write(line.encode())
        rows.flush()
        return {"examples": stop, "texts": done["texts"] + len(texts), "bytes": rows.tell()}

    def _put(self, file: str, at: int, states: torch.Tensor, rows: int) -> None:
        """Write states [n, ...] at row `at` of a file that holds at least `rows`; a full file is doubled."""
        array = as_array(states)
        path = self.folder / file
        known = np.load(path, mmap_mode="r+") if path.is_file() else None
        if known is None or len(known) < rows:
            grown = path.with_suffix(".grown.npy")
            size = max(rows, 2 * (0 if known is None else len(known)))
            new = np.lib.format.open_memmap(grown, "w+", array.dtype, (size, *array.shape[1:]))
            if known is not None:
                new[: len(known)] = known
            grown.replace(path)
            known = new
        known[at : at + len(array)] = array
        known.flush()


def encoded_once(writers: Sequence[CacheWriter], root: Path, accelerator: Accelerator) -> list[Path]:
    """The writers' folders, all written: by the main process, while the other ranks wait."""
    places: list[Path] = []
    if accelerator.is_main_process:
        root.mkdir(parents=True, exist_ok=True)
        for writer in writers:
            source = writer.source
            with turn(root / f"{writer.key()}.lock", f"features    another run encodes {source.name}"):
                place = writer.place(root)
                while (place / DONE).is_file() and (changed := unusable(source, place, writer.frame)):
                    accelerator.print(f"features    {changed}: encoded again", flush=True)
                    shutil.rmtree(place)
                    place = writer.place(root)  # without patches it is another
                places.append(place)
                if not (place / DONE).is_file():
                    writer.write(place)
    return from_first(places)


def framed(source: Source, index: int, frame: Geometry) -> Example | BrokenExample:
    """An example as every epoch sees it; whatever fails while a row is read is that row's."""
    try:
        example = source.example(index)
        image, regions = frame.apply(example, None)
        return replace(example, image=image, regions=regions)
    except BrokenExample as error:
        return error
    except Exception as error:
        return BrokenExample(reason_of(error))


def unusable(source: Source, place: Path, frame: Geometry) -> str | None:
    """Why what a folder holds is not to be used; None where their files and the images are as they were.

    Of the rows `SAMPLE` are looked at, spread over the source, their pixels and captions; what changes between
    them is not seen. The key knows the names of files and the first of the texts.
    """
    try:
        written = load_json(place / DONE).get("files", {})
    except (OSError, ValueError, AttributeError):
        return f"{place / DONE} is damaged"
    for name, seen in written.items():
        if not (place / name).is_file() or checksum_of(place / name) != seen:
            return f"{place / name} is not as it was written"
    known = CachedSource(source, [place], frame.pixels)
    rows = np.linspace(0, len(known) - 1, min(SAMPLE, len(known))).astype(int).tolist()
    same = all(known.seen(index) == facts_of(framed(source, index, frame)) for index in rows)
    return None if same else f"images or captions of {source.name} are others than before"


def room_for(folder: Path, wanted: float) -> bool:
    """Has the disk that many gigabytes left, and a tenth more?"""
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return shutil.disk_usage(place).free / 1e9 > 1.1 * wanted
