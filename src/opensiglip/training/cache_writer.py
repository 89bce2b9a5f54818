"""What a frozen tower makes of the images and texts of sources, each encoded once, whatever source or run shows it.

An image is known by a hash of its file, or of its pixels where a source has no file; a text by its ids. The name of a
folder says what else its states depend on. A writer that is killed goes on where it stopped.
"""

import hashlib
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from opensiglip.data.example import Source
from opensiglip.data.fields.states import as_array, as_tensor
from opensiglip.data.sources.cached import TextInput
from opensiglip.data.sources.state_store import STATES_FILE, StateStore, StoreWriter
from opensiglip.disk import writable
from opensiglip.training.lock import turn
from opensiglip.training.shown_images import ShownImages, Waiting

IMAGES_AT_ONCE, TEXTS_AT_ONCE = 64, 512  # encoded in one block, and written before the next
NO_MATTER = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")  # of a tower's config
SAY_EVERY = 30.0  # seconds between lines of progress


@dataclass(frozen=True)
class Tower:
    """A frozen tower: its folder, named by all that its states depend on but the input, and how it makes them."""

    folder: Path
    model: nn.Module
    states: Callable[[Tensor], Tensor]  # of images [n, 3, H, W] uint8 or ids [n, L] on its device: [n, ...]

    @contextmanager
    def writing(self, what: str, keys: Collection[bytes]) -> Iterator[StoreWriter]:
        """Its states for writing, while another run waits; where all keys are known nothing is written or waited for.

        `what`: images or texts.
        """
        writable(self.folder.parent, "--features")
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        store = StoreWriter(self.folder)
        if all(key in store for key in keys):
            yield store
            return
        lock = self.folder.with_name(f"{self.folder.name}.lock")
        with turn(lock, f"features    another run encodes {what} by the same tower"):
            yield StoreWriter(self.folder)

    def known(self, sources: Iterable[ShownImages]) -> int:
        """How many rows of sources show an image that is encoded."""
        store = StoreWriter(self.folder)
        return sum(key in store for source in sources for key in source.keys)

    @torch.no_grad()
    def make(self, inputs: Tensor) -> np.ndarray:
        """The states of inputs, as a store holds them."""
        was = self.model.training
        self.model.eval()
        found = as_array(self.states(inputs.to(next(self.model.parameters()).device)))
        self.model.train(was)
        return found


def write_images(sources: Sequence[ShownImages], tower: Tower) -> None:
    """Encode the images that the tower's folder does not know, and write the lines of every source."""
    keys = {key for source in sources for key in source.keys if key}
    with tower.writing("images", keys) as store:
        progress = Progress("images", keys, store)
        waiting: Waiting = {}

        def encode() -> None:
            images, facts = zip(*waiting.values(), strict=True)
            store.append(list(waiting), tower.make(torch.stack(images)), facts)
            progress.add(len(waiting))
            waiting.clear()

        for source in sources:
            for _ in source.read(store, waiting):
                if len(waiting) == IMAGES_AT_ONCE:
                    encode()
        if waiting:
            encode()
        for source in sources:
            source.write()


def write_texts(texts: Iterable[str], tower: Tower, read: TextInput) -> None:
    """Encode the texts that the tower's folder does not know, and the empty one, which stands for none."""
    by_key = {read.key(text): text for text in chain([""], texts)}
    with tower.writing("texts", by_key) as store:
        progress, pad = Progress("texts", by_key, store), read.pipeline.policy.pad_id
        new = [key for key in by_key if key not in store]
        for start in range(0, len(new), TEXTS_AT_ONCE):
            keys = new[start : start + TEXTS_AT_ONCE]
            ids = [torch.from_numpy(read.ids(by_key[key])) for key in keys]
            store.append(keys, tower.make(pad_sequence(ids, batch_first=True, padding_value=pad)), [None] * len(keys))
            progress.add(len(keys))


def write_from_states(what: str, keys: Iterable[bytes], encoded: Path, heads: Tower) -> None:
    """Write what `heads` make of the states in the folder `encoded`, for the keys that it alone knows.

    `what`: images or texts.
    """
    states = StoreWriter(encoded)
    known = [key for key in dict.fromkeys(keys) if key in states]
    with heads.writing(what, known) as store:
        progress, read = Progress(what, known, store), StateStore(encoded)
        new = [key for key in known if key not in store]
        for start in range(0, len(new), IMAGES_AT_ONCE):
            some = new[start : start + IMAGES_AT_ONCE]
            rows = heads.make(as_tensor(np.stack([read[key] for key in some])))
            store.append(some, rows, [None] * len(some))
            progress.add(len(some))


class Progress:
    """Lines that say how many inputs are known, how many are encoded, and how long that will take."""

    def __init__(self, what: str, keys: Collection[bytes], store: StoreWriter) -> None:
        self.count, self.done = sum(key not in store for key in keys), 0
        self.began = self.said = time.perf_counter()
        if store.damaged:
            print(f"features    {store.folder / STATES_FILE} is not as it was written: encoded again", flush=True)
        new = f", encoding {self.count}" if self.count else ""
        print(f"features    {len(keys)} {what}: {len(keys) - self.count} known{new}, in {store.folder}", flush=True)

    def add(self, count: int) -> None:
        """So many more are encoded."""
        self.done += count
        now = time.perf_counter()
        if now - self.said > SAY_EVERY:
            self.said, pace = now, self.done / (now - self.began)
            left = (self.count - self.done) / pace / 60
            print(f"features    {self.done}/{self.count}, {pace:.0f} a second, {left:.1f} min left", flush=True)


def texts_of(source: Source) -> Iterator[str]:
    """The captions of a source; no image is decoded where that can be saved."""
    for index in range(len(source)):
        with suppress(Exception):  # it will be that row's, when it is read
            yield from (caption.text for caption in source.without_pixels(index, 1, 1).captions)


def digest_of(facts: object, tower: nn.Module) -> str:
    """A name of what a tower's states depend on: these facts, its weights, and its config, which says their use."""
    config = tower.config.to_diff_dict() if isinstance(tower, PreTrainedModel) else {}
    config = {name: value for name, value in sorted(config.items()) if name not in NO_MATTER}
    digest = hashlib.sha256(repr([facts, type(tower).__name__, config]).encode())
    for tensor in tower.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:24]


def room_for(folder: Path, wanted: float) -> bool:
    """Has the disk that many gigabytes left, and a tenth more?"""
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return shutil.disk_usage(place).free / 1e9 > 1.1 * wanted
