"""The index of a tar: where each sample's members lie, so that any of them is read by one `pread`.

Nothing is ever unpacked. A member's name is a label, so `..`, absolute names, links and devices can do no harm.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from opensiglip.data.example import BrokenExample
from opensiglip.data.sources.disk_cache import cache_folder
from opensiglip.data.sources.remote import RemoteFile, facts_of
from opensiglip.data.sources.tar_headers import BLOCK, BrokenTar, Member, members_of

Ints = NDArray[np.int64]
Found = TypeVar("Found")

VERSION = "1"  # of the index file
DAMAGE = (OSError, ValueError, TypeError, KeyError, pa.ArrowException)  # what reading an index may raise
NAMED_TWICE = "tar member named twice"
SCHEMA = pa.schema(
    [
        ("key", pa.large_string()),
        ("members", pa.large_list(pa.struct([("ext", pa.string()), ("offset", pa.int64()), ("size", pa.int64())]))),
    ]
)


@dataclass(frozen=True)
class TarIndex:
    """Samples of a tar in the order of their first members: a row each of `SCHEMA`; and what was left out."""

    table: pa.Table
    skipped: Counter[str]

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def sample(self, row: int) -> tuple[str, dict[str, tuple[int, int]]]:
        """Key of a sample, and offset and size in bytes of each member by its extension."""
        keys, ends, extensions, names, offsets, sizes = self._arrays
        if not 0 <= row < len(self):
            raise IndexError(f"sample {row} of {len(self)}")
        part = slice(int(ends[row]), int(ends[row + 1]))
        places = zip(offsets[part].tolist(), sizes[part].tolist(), strict=True)
        return keys[row].as_py(), dict(zip((names[one] for one in extensions[part].tolist()), places, strict=True))

    @cached_property
    def _arrays(self) -> tuple[pa.Array, Ints, Ints, list[str], Ints, Ints]:
        """What a sample is found by: keys [S]; where its members begin, and the last ones end [S + 1]; of each member
        [M] the number of its extension, what those are, its offset and size."""
        keys, members = (self.table[name].combine_chunks() for name in ("key", "members"))
        inside = members.values
        extensions = inside.field("ext").dictionary_encode()
        return (
            keys,
            members.offsets.to_numpy(),
            extensions.indices.to_numpy(),
            extensions.dictionary.to_pylist(),
            inside.field("offset").to_numpy(),
            inside.field("size").to_numpy(),
        )


def tar_index(path: Path) -> TarIndex:
    """The index of a tar: the one on disk if it was made of a file of this size and time, else a new one.

    Raises OSError if the tar is not there.
    """
    facts = path.stat()
    if (index := _on_disk(path, facts, read_index)) is not None:
        return index
    index = scan(path)
    _keep(index, path, facts)
    return index


def tar_counts(path: Path) -> tuple[int, Counter[str]]:
    """Number of a tar's samples and what its index leaves out, by the head of the index that is on disk.

    Without one it is made. So opening many tars reads little of each. Raises OSError if the tar is not there.
    """
    facts = path.stat()
    if (counts := _on_disk(path, facts, read_counts)) is not None:
        return counts
    known = _on_disk(path, facts, read_index)  # one that an earlier version wrote has no counts in its head
    index = scan(path) if known is None else known
    _keep(index, path, facts)
    return len(index), index.skipped


def _on_disk(
    path: Path, facts: os.stat_result, read: Callable[[Path, dict[str, str], int], Found | None]
) -> Found | None:
    """What is read from the first place that holds an index of the tar as `facts` have it."""
    stamp = stamp_of(facts.st_size, facts.st_mtime_ns)
    return next((found for place in places(path) if (found := read(place, stamp, facts.st_size)) is not None), None)


def _keep(index: TarIndex, path: Path, facts: os.stat_result) -> None:
    """Write the index of a tar that was so before it was scanned."""
    keep_index(index, stamp_of(facts.st_size, facts.st_mtime_ns), places(path))


def remote_index(tar: RemoteFile) -> TarIndex:
    """The index of a tar elsewhere: from the user's cache, from `NAME.tar.index` beside it, or of its fetched copy.

    Raises BrokenExample where it can't be fetched.
    """
    stamp, place = stamp_of(tar.size, tar.version), in_cache(str(tar))
    if (index := read_index(place, stamp, tar.size)) is not None:
        return index
    index = sidecar(tar)
    if index is None:
        with os.fdopen(tar.open(), "rb", buffering=BLOCK) as copy:
            index = scan_open(copy, tar.size)
    keep_index(index, stamp, [place])
    return index


def remote_counts(tar: RemoteFile) -> tuple[int, Counter[str]]:
    """The same as `tar_counts` of a tar elsewhere. Raises BrokenExample where it can't be fetched."""
    if (counts := read_counts(in_cache(str(tar)), stamp_of(tar.size, tar.version), tar.size)) is not None:
        return counts
    index = remote_index(tar)
    return len(index), index.skipped


def stamp_of(size: int, version: int) -> dict[str, str]:
    """What an index says of the tar that it was made of: its size in bytes and its time in ns."""
    return {"version": VERSION, "size": str(size), "mtime_ns": str(version)}


def sidecar(tar: RemoteFile) -> TarIndex | None:
    """The index that was uploaded beside a tar, if it is of one of its size: uploading changes a file's time."""
    try:
        beside = facts_of(f"{tar}.index", tar.cache)
        descriptor = beside.open()
    except BrokenExample:
        return None
    with os.fdopen(descriptor, "rb") as copy:
        return read_index(pa.PythonFile(copy, "r"), {"version": VERSION, "size": str(tar.size)}, tar.size)


def keep_index(index: TarIndex, stamp: dict[str, str], where: Iterable[Path]) -> None:
    """Write an index to the first of these places that can be written to."""
    facts = stamp | {"samples": str(len(index)), "skipped": json.dumps(index.skipped)}
    for place in where:
        try:
            write_index(index.table.replace_schema_metadata(facts), place)
        except OSError:  # a read-only folder: the user's cache is next
            continue
        break


def places(path: Path) -> Iterator[Path]:
    """Where an index may lie: beside the tar, or in the user's cache where that folder can't be written to."""
    yield path.with_name(f"{path.name}.index")
    yield in_cache(str(path.resolve()))


def in_cache(name: str) -> Path:
    """Where the index of a tar of this path or URL may lie in the user's cache."""
    digest = hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=16).hexdigest()
    return cache_folder() / "tar-index" / digest


def read_index(place: Path | pa.NativeFile, stamp: dict[str, str], size: int) -> TarIndex | None:
    """The index at a place; None where there is none, or it is of another file or damaged."""
    try:
        with pa.memory_map(str(place)) if isinstance(place, Path) else place as mapped:
            reader = pa.ipc.open_file(mapped)
            found = facts_in(reader.schema, stamp)
            table = reader.read_all().combine_chunks()
        table.validate(full=True)
        members = table["members"].combine_chunks().flatten()
        if table["key"].null_count or table["members"].null_count or any(one.null_count for one in members.flatten()):
            return None
        ends = pa.compute.add_checked(members.field("offset"), members.field("size"))
        if len(members) and not (
            pa.compute.min(members.field("offset")).as_py() >= 0
            and pa.compute.min(members.field("size")).as_py() >= 0
            and pa.compute.max(ends).as_py() <= size
        ):
            return None
        return TarIndex(table, Counter(json.loads(found["skipped"])))
    except DAMAGE:
        return None


def read_counts(place: Path, stamp: dict[str, str], size: int) -> tuple[int, Counter[str]] | None:
    """What the head of the index at a place says: its samples and what it leaves out. None as above, or if it doesn't.

    A memory map of each of thousands of indexes would cost more than the head.
    """
    try:
        with pa.OSFile(str(place)) as file:
            found = facts_in(pa.ipc.open_file(file).schema, stamp)
        samples, skipped = int(found["samples"]), Counter(json.loads(found["skipped"]))
    except DAMAGE:
        return None
    return (samples, skipped) if 0 <= samples <= size // BLOCK else None  # each has a header


def facts_in(schema: pa.Schema, stamp: dict[str, str]) -> dict[str, str]:
    """What an index says of itself. Raises ValueError where it was made of another file, or is no index."""
    found = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
    if schema.remove_metadata() != SCHEMA or stamp.items() - found.items():
        raise ValueError("the index of another file")
    return found


def write_index(table: pa.Table, place: Path) -> None:
    """Write an index, whole or not at all. Raises OSError."""
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        part.replace(place)
    finally:
        part.unlink(missing_ok=True)


def scan(path: Path) -> TarIndex:
    """Read all headers of a tar. A damaged tar has the samples that lie before the damage.

    WebDataset's rule: the key of a member is its name up to the first dot of the last part, the rest its extension.
    Members of a sample need not be neighbours; of two with one name the first counts. Raises OSError.
    """
    with path.open("rb", buffering=BLOCK) as file:
        return scan_open(file, path.stat().st_size)


def scan_open(file: BinaryIO, length: int) -> TarIndex:
    """The same of an open tar of so many bytes."""
    samples: dict[str, dict[str, Member]] = {}
    skipped = Counter[str]()
    try:
        for member in members_of(file, length):
            folder, slash, name = member.name.removeprefix("./").rpartition("/")
            stem, dot, extension = name.partition(".")
            if not stem or not dot:
                skipped["tar member without key or extension"] += 1
            elif extension.lower() in (parts := samples.setdefault(folder + slash + stem, {})):
                skipped[NAMED_TWICE] += 1
            else:
                parts[extension.lower()] = member
    except BrokenTar as error:
        skipped[str(error)] += 1
    rows = [[{"ext": e, "offset": m.offset, "size": m.size} for e, m in parts.items()] for parts in samples.values()]
    keys = pa.array(list(samples), SCHEMA.field(0).type)
    return TarIndex(pa.table([keys, pa.array(rows, SCHEMA.field(1).type)], SCHEMA), skipped)
