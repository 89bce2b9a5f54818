"""Tars of samples, as img2dataset and DataComp write them for WebDataset, with random access by an index."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from opensiglip.data.example import BrokenExample
from opensiglip.data.sources.ahead import fetch_ahead
from opensiglip.data.sources.columns import LANGUAGES, SAME, TEXTS, Columns, parse_json, shares_of
from opensiglip.data.sources.images import MAX_BYTES
from opensiglip.data.sources.lazy import LazySource
from opensiglip.data.sources.metadata import MAX_LINE
from opensiglip.data.sources.recent import Recent
from opensiglip.data.sources.remote import RemoteFile
from opensiglip.data.sources.shards import check_cache, find_files, folder_of, lanes_of, shards_of
from opensiglip.data.sources.spec import Spec
from opensiglip.data.sources.split import Part, choose, split_in
from opensiglip.data.sources.tar_index import TarIndex, remote_counts, remote_index, tar_counts, tar_index
from opensiglip.errors import UserError

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic")
LABELS = ("cls", "label", "cls.txt")
LANES, OPEN = 64, 256  # a window opens up to two tars a lane
INDEXED_AT_ONCE = 8


class OpenTar:
    """A tar and its index, open."""

    def __init__(self, path: Path | RemoteFile, stamp: tuple[int, int], samples: int) -> None:
        """Raises BrokenExample where the tar is gone, or its size and time or number of samples are not those given."""
        self.index: TarIndex
        if isinstance(path, RemoteFile):
            self.file, self.index = path.open(), remote_index(path)
            return
        try:
            self.file = os.open(path, os.O_RDONLY)
        except OSError:
            raise BrokenExample(f"{path.name} can't be opened") from None
        facts = os.fstat(self.file)
        if (facts.st_size, facts.st_mtime_ns) != stamp:
            os.close(self.file)
            raise BrokenExample(f"{path.name} has changed")
        self.index = tar_index(path)
        if len(self.index) != samples:  # a damaged index was read at the start, and has been made anew
            os.close(self.file)
            raise BrokenExample(f"{path.name} has another number of samples than its index said")

    def read(self, offset: int, size: int) -> bytes:
        """A member. Raises BrokenExample."""
        try:
            data = os.pread(self.file, size, offset)
        except OSError:
            raise BrokenExample("tar can't be read") from None
        if len(data) != size:
            raise BrokenExample("tar is cut off")
        return data

    def close(self) -> None:
        os.close(self.file)


class Tars(LazySource):
    """Samples of tars. Texts come from members such as `txt`, and from the JSON member's usual keys."""

    kind = "tar"
    lanes = LANES

    def __init__(self, spec: Spec, *, split: str = "train", languages: Sequence[str] | None = None) -> None:
        """Index what has no index yet. Raises UserError where tars are missing or none of their samples can be used."""
        files = find_files(spec, ".tar")
        chosen, part = choose([split_in(file) for file in files], split)
        self.files = [files[at] for at in chosen]
        self.texts_in, self.shares = tuple(spec.texts()), shares_of(spec.texts())
        self.image_in, self.label_in = spec.several("image"), spec.several("label")
        self.language_in = spec.options.get("lang")
        self.lanes = lanes_of(spec, LANES)
        check_cache(spec, self.files, self.lanes)
        indexes = open_indexes(self.files)
        self.stamps = [stamp for stamp, _, _ in indexes]
        self.sizes = np.array([rows for _, rows, _ in indexes], np.int64)
        self.ends = np.cumsum(self.sizes)
        rows = Part(self.sizes.tolist(), part)
        self.shards = rows.sizes.tolist()
        self.opened = Recent(self._open, max(OPEN, 2 * self.lanes), OpenTar.close)
        self.samples = Recent(self._find, 1)  # a row's texts, image and key are asked for one after the other
        self.fetches = any(isinstance(file, RemoteFile) for file in self.files)
        self.root = Path(spec.options.get("root") or folder_of(files[0])).expanduser()
        super().__init__(spec, split, languages, rows)
        for _, _, skipped in indexes:
            self.skipped.update(skipped)

    def columns(self, row: int) -> dict[str, Any]:
        tar, _, members = self._sample(row)
        values = parse_json(tar.read(*bounded(members["json"], MAX_LINE))) if "json" in members else {}
        texts = self.texts_in or tuple(name for name in TEXTS if name in members or name in values)
        for name in (*texts, *(self.label_in or LABELS)):
            if name in members:
                values[name] = decode_text(tar.read(*bounded(members[name], MAX_LINE)))
        label = next((name for name in self.label_in or LABELS if name in values), None)
        language = self.language_in or next((name for name in LANGUAGES if name in values), None)
        return Columns("", texts, label, language, SAME, shares=self.shares).row(values)

    def image(self, row: int) -> bytes:
        tar, _, members = self._sample(row)
        for extension in self.image_in or IMAGES:
            if extension in members:
                return tar.read(*bounded(members[extension], MAX_BYTES))
        raise BrokenExample("sample has no image")

    def key(self, row: int) -> str:
        return self._sample(row)[1]

    def facts(self) -> dict[str, Any]:
        return {"first_shard": self.files[0].name, "texts": list(self.texts_in) or "usual members and JSON keys"}

    def prepare(self, indices: Sequence[int]) -> None:
        fetch_ahead(shards_of(indices, self.rows, self.ends, self.files))

    def _sample(self, row: int) -> tuple[OpenTar, str, dict[str, tuple[int, int]]]:
        shard, key, members = self.samples[row]
        return self.opened[shard], key, members

    def _find(self, row: int) -> tuple[int, str, dict[str, tuple[int, int]]]:
        """The number of a row's tar, its key, and offset and size of each member."""
        shard = int(np.searchsorted(self.ends, row, side="right"))
        return shard, *self.opened[shard].index.sample(row - int(self.ends[shard] - self.sizes[shard]))

    def _open(self, shard: int) -> OpenTar:
        return OpenTar(self.files[shard], self.stamps[shard], int(self.sizes[shard]))


def open_indexes(files: Sequence[Path | RemoteFile]) -> list[tuple[tuple[int, int], int, dict[str, int]]]:
    """What `open_index` says of each, in threads that wait for disks and servers. Raises UserError."""
    stretch = -(-len(files) // (8 * INDEXED_AT_ONCE)) or 1  # a task a file would cost more than many an index
    parts = [files[at : at + stretch] for at in range(0, len(files), stretch)]
    with ThreadPoolExecutor(INDEXED_AT_ONCE) as pool:
        return [one for some in pool.map(lambda part: list(map(open_index, part)), parts) for one in some]


def open_index(file: Path | RemoteFile) -> tuple[tuple[int, int], int, dict[str, int]]:
    """Size in bytes and time in ns of a tar, number of its samples, and what its index leaves out. Raises UserError."""
    if isinstance(file, RemoteFile):
        try:
            return (file.size, file.version), *remote_counts(file)
        except BrokenExample as reason:
            raise UserError(f"{file} can't be read ({reason}); fix or leave out the tar.") from None
    try:
        facts = file.stat()
        return (facts.st_size, facts.st_mtime_ns), *tar_counts(file)
    except OSError as error:
        raise UserError(f"{file} can't be read ({error.strerror or error}); fix or leave out the tar.") from None


def bounded(member: tuple[int, int], most: int) -> tuple[int, int]:
    """A member's offset and size. Raises BrokenExample where it is larger than anything to be read into memory."""
    if member[1] > most:
        raise BrokenExample(f"tar member over {most // 1_000_000} MB")
    return member


def decode_text(data: bytes) -> str:
    """A text member. Raises BrokenExample."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise BrokenExample("text is not UTF-8") from None
