"""Frozen towers are encoded once: what their heads read lies in memory-mapped files that runs share.

A tower that is not trained gives an image or a text the same states in every epoch. They are written once, in the run's
precision, and read by every later step; a run that is killed while it writes goes on where it stopped.
"""

import hashlib
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from opensiglip.checkpoints.manifest import checksum_of
from opensiglip.data.example import BrokenExample, Example, Source, reason_of
from opensiglip.data.fields.captions import Captions
from opensiglip.data.fields.field import Field, Images, Texts
from opensiglip.data.fields.frame import Frame, Geometry
from opensiglip.data.fields.states import ImageStates, TextStates, as_array
from opensiglip.data.sources.cached import IMAGES_FILE, ROWS_FILE, TEXTS_FILE, CachedSource, facts_of, to_row
from opensiglip.data.text import TextPipeline
from opensiglip.distributed import from_first
from opensiglip.inference.encoder import Autocast
from opensiglip.json_file import load_json, write_json
from opensiglip.models.model import Model
from opensiglip.models.pretrained_towers import is_frozen
from opensiglip.recipes import Recipe
from opensiglip.training.lock import turn
from opensiglip.training.precision import autocast
from opensiglip.training.record import fingerprints

BLOCK = 64  # examples encoded at once, and written before the next
TEXTS_AT_ONCE = 64
DONE, PROGRESS = "done.json", "progress.json"
SAMPLE = 64  # images that are looked at before features are used again
SAY_EVERY = 30.0  # seconds between lines of progress


@dataclass(frozen=True)
class Frozen:
    """Which towers can be read from a cache."""

    images: bool
    texts: bool
    patches: bool = True  # are patch tokens read, or mean and class token alone?

    @classmethod
    def of(cls, model: Model, recipe: Recipe) -> "Frozen":
        """Those of another make that nothing trains; images only where each is always seen the same.

        None where a field reads more of an example than its image, captions and regions, which is all that the cache
        holds.
        """
        pair = model.architecture.foreign
        frame = recipe.frame
        still = isinstance(frame, Frame) and frame.crop_area == 1
        images = pair is not None and pair.vision is not None and still and is_frozen(model.vision.tower)
        texts = pair is not None and pair.text is not None and is_frozen(getattr(model.text, "tower", None))
        reads = {type(field) for field in recipe.fields}
        plain = reads <= {Images, Texts, Captions}
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
    within = autocast(precision, accelerator.device)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    wanted = gigabytes(model, recipe, sources, frozen, dtype)
    if wanted > limit or not room_for(root, wanted):
        why = f"more than --features-gb {limit:g}" if wanted > limit else f"more than the disk of {root} has left"
        accelerator.print(f"features    not cached: {wanted:.1f} GB are {why}; towers encode every batch", flush=True)
        return recipe, list(sources)
    places: list[Path] = []
    if accelerator.is_main_process:
        root.mkdir(parents=True, exist_ok=True)
        for source in sources:
            lock = root / f"{key(source, model, recipe, frozen, dtype)}.lock"
            with turn(lock, f"features    another run encodes {source.name}"):
                place = place_of(root, source, model, recipe, frozen, dtype)
                while (place / DONE).is_file() and (changed := unusable(source, place, recipe.frame)):
                    accelerator.print(f"features    {changed}: encoded anew", flush=True)
                    shutil.rmtree(place)
                    place = place_of(root, source, model, recipe, frozen, dtype)  # without patches it is another
                places.append(place)
                if not (place / DONE).is_file():
                    place.mkdir(exist_ok=True)
                    _Writer(source, place, model, recipe, pipeline, frozen, within, dtype).write()
    places = from_first(places)
    accelerator.print(f"features    {wanted:.2f} GB of images' states in {root}", flush=True)
    tokens = None if frozen.patches or not frozen.images else model.vision.summary
    read = [CachedSource(one, place, recipe.frame.pixels, tokens) for one, place in zip(sources, places, strict=True)]
    return replace(recipe, fields=with_states(recipe.fields, frozen)), list(read)


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


def place_of(root: Path, source: Source, model: Model, recipe: Recipe, frozen: Frozen, dtype: torch.dtype) -> Path:
    """The folder of a source's states. One that holds patch tokens serves those who do not read them, too."""
    whole = root / key(source, model, recipe, replace(frozen, patches=True), dtype)
    return whole if (whole / DONE).is_file() else root / key(source, model, recipe, frozen, dtype)


def key(source: Source, model: Model, recipe: Recipe, frozen: Frozen, dtype: torch.dtype) -> str:
    """A name of what the states depend on: the towers' weights and pooling, the frame, the data."""
    digest = hashlib.sha256()
    facts = [source.name, fingerprints([source]), str(recipe.frame), repr(recipe.frame), frozen, str(dtype)]
    pair = replace(model.architecture.foreign, vision=None, text=None, head="", embed=0, dropout=0.0)  # type: ignore[type-var]
    length = model.architecture.length if frozen.texts else None
    digest.update(repr([facts, pair, length]).encode())
    for tower in (model.vision.tower, getattr(model.text, "tower", None)):
        for tensor in () if tower is None else tower.state_dict().values():
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:24]


class _Writer:
    """Encodes a source in blocks of `BLOCK` examples, each written before the next begins."""

    def __init__(
        self,
        source: Source,
        folder: Path,
        model: Model,
        recipe: Recipe,
        pipeline: TextPipeline,
        frozen: Frozen,
        autocast: Autocast,
        dtype: torch.dtype,
    ) -> None:
        self.source, self.folder, self.model, self.frame = source, folder, model, recipe.frame
        self.pipeline, self.frozen, self.autocast, self.dtype = pipeline, frozen, autocast, dtype
        self.device = next(model.parameters()).device

    @torch.no_grad()
    def write(self) -> None:
        """Go on from the last whole block."""
        was = self.model.training
        self.model.eval()
        done: dict[str, int] = {"examples": 0, "texts": 0, "bytes": 0}
        if (self.folder / PROGRESS).is_file():
            done = load_json(self.folder / PROGRESS)
        total, began, said, first = len(self.source), time.perf_counter(), time.perf_counter(), done["examples"]
        print(f"features    encoding {total} images and their texts once, into {self.folder}", flush=True)
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
        if self.frozen.images:
            blank = torch.zeros(3, self.frame.pixels, self.frame.pixels, dtype=torch.uint8)
            images = torch.stack([blank if isinstance(e, BrokenExample) else e.image for e in examples])
            with self.autocast():
                states = self.model.vision.read(images.to(self.device).float().div_(127.5).sub_(1))
            if not self.frozen.patches:
                states = states[:, : self.model.vision.summary]
            self._put(IMAGES_FILE, start, states, len(self.source))
        if self.frozen.texts and texts:
            states = self._read_texts(np.stack([self.pipeline.fixed(text) for text in texts]))
            self._put(TEXTS_FILE, done["texts"], states, done["texts"] + len(texts))
        for line in lines:
            rows.write(line.encode())
        rows.flush()
        return {"examples": stop, "texts": done["texts"] + len(texts), "bytes": rows.tell()}

    def _read_texts(self, ids: np.ndarray) -> torch.Tensor:
        """ids [n, L] -> states [n, D]; texts of like length together, as padding costs what a token does."""
        assert self.model.text is not None
        lengths = (ids != self.pipeline.policy.pad_id).sum(1)
        order, parts = np.argsort(lengths, kind="stable"), []
        for start in range(0, len(ids), TEXTS_AT_ONCE):
            some = order[start : start + TEXTS_AT_ONCE]
            shown = torch.from_numpy(ids[some, : max(1, lengths[some].max())]).to(self.device)
            with self.autocast():
                parts.append(self.model.text.read(shown)[:, 0])  # type: ignore[operator]
        return torch.cat(parts)[torch.from_numpy(np.argsort(order)).to(self.device)]

    def _put(self, file: str, at: int, states: torch.Tensor, rows: int) -> None:
        """Write states [n, ...] at row `at` of a file that holds at least `rows`; a full file is doubled."""
        array = as_array(states.to(self.dtype))
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
    """Why the features in a folder are not to be used; None where their files and the images are as they were.

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
    known = CachedSource(source, place, frame.pixels)
    rows = np.linspace(0, len(known) - 1, min(SAMPLE, len(known))).astype(int).tolist()
    same = all(known.seen(index) == facts_of(framed(source, index, frame)) for index in rows)
    return None if same else f"images or captions of {source.name} are others than before"


def room_for(folder: Path, wanted: float) -> bool:
    """Has the disk that many gigabytes left, and a tenth more?"""
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return shutil.disk_usage(place).free / 1e9 > 1.1 * wanted
