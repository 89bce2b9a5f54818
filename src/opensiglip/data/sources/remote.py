"""Shards in object stores and on web servers: fetched whole into the node's disk cache, retried with back-off.

pyarrow reads S3, Google's and Azure's stores; fsspec reads https and the hub. Credentials are theirs to find, in the
environment and in the users' own files: none stands in a spec, and no message repeats what follows a "?" in a URL.
"""

import errno
import hashlib
import os
import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

import fsspec
import pyarrow.fs as pafs

from opensiglip.data.example import BrokenExample
from opensiglip.data.sources.disk_cache import DiskCache
from opensiglip.data.sources.url import is_remote, plain
from opensiglip.errors import UserError

BY_ARROW = ("s3", "gs", "gcs", "abfs", "abfss")
TRIES, FIRST_PAUSE, LONGEST_PAUSE = 5, 0.5, 8.0  # seconds, doubled from try to try
FORGET = 300.0  # seconds after which a shard that could not be fetched is tried again
CHUNK = 1 << 23  # bytes
Result = TypeVar("Result")

failed: dict[str, tuple[float, str]] = {}  # of this process: when a shard could not be had, and why


@dataclass(frozen=True)
class RemoteFile:
    """A shard elsewhere, of the size and version that it had when the source was opened."""

    url: str
    size: int
    version: int  # its time in ns, or a hash of its tag
    cache: DiskCache

    @property
    def name(self) -> str:
        return self.parts.name

    @property
    def parent(self) -> PurePosixPath:
        return self.parts.parent

    @property
    def parts(self) -> PurePosixPath:
        return PurePosixPath(plain(self.url))

    @property
    def key(self) -> str:
        """What its copy is called in the cache: another for each version."""
        return f"{plain(self.url)} {self.size} {self.version}"

    def __str__(self) -> str:
        return plain(self.url)

    def open(self) -> int:
        """A descriptor of the copy on this node's disk, fetched where it is not there. Raises BrokenExample."""
        when, why = failed.get(self.url, (-FORGET, ""))
        if time.monotonic() - when < FORGET:
            raise BrokenExample(why)
        try:
            return self.cache.open(self.key, self._fetch)
        except BrokenExample as reason:
            failed[self.url] = time.monotonic(), str(reason)
            raise
        except OSError as error:
            raise UserError(
                f"the cache {self.cache.root} can't be written to ({error.strerror}); give a smaller --cache-gb, or "
                "set XDG_CACHE_HOME to another disk."
            ) from None

    def fetch_ahead(self) -> None:
        """Have a copy on this node's disk; whatever goes wrong is for `open` to say."""
        if not self.cache.holds(self.key):
            with suppress(BrokenExample, UserError):
                os.close(self.open())

    def _fetch(self, to: Path) -> None:
        """Write the file to a path. Raises BrokenExample, and OSError for what the disk says."""
        retried(lambda: copy(self.url, to), self.name)
        if to.stat().st_size != self.size:
            raise BrokenExample(f"{self.name} has changed")


def locate(url: str) -> tuple[Any, str]:
    """The file system of a URL, pyarrow's or fsspec's, of this process; and the path in it. Raises all that they do."""
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    if scheme in BY_ARROW:
        return by_arrow(scheme, parts.netloc, os.getpid()), f"{parts.netloc}{parts.path}"
    filesystem = by_fsspec(scheme, os.getpid())
    return filesystem, str(filesystem._strip_protocol(url))


def copy(url: str, to: Path) -> None:
    """Write a file to a path. Raises all that the libraries do."""
    filesystem, path = locate(url)
    if not isinstance(filesystem, pafs.FileSystem):
        filesystem.get_file(path, str(to))
        return
    with filesystem.open_input_stream(path) as source, to.open("wb") as sink:
        while data := source.read(CHUNK):
            sink.write(data)


@lru_cache(maxsize=64)
def by_fsspec(scheme: str, process: int) -> Any:
    """A file system of fsspec's; each process has its own, as its threads do not outlive a fork."""
    return fsspec.filesystem(scheme, skip_instance_cache=True)


@lru_cache(maxsize=64)
def by_arrow(scheme: str, bucket: str, process: int) -> pafs.FileSystem:
    """A file system of pyarrow's; S3's other makers are named by AWS_ENDPOINT_URL, as everywhere."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if scheme == "s3" and endpoint:
        return pafs.S3FileSystem(endpoint_override=endpoint)
    return pafs.FileSystem.from_uri(f"{'gs' if scheme == 'gcs' else scheme}://{bucket}/")[0]


def retried(action: Callable[[], Result], name: str) -> Result:
    """What an action gives, tried again after pauses. Raises BrokenExample with the kind of the last error only.

    Its text may hold a signed URL. What is not there or not ours to read is not asked for again; a full disk is for the
    caller to tell.
    """
    pause = FIRST_PAUSE
    for attempt in range(TRIES):
        try:
            return action()
        except Exception as error:  # of three libraries and the network
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise
            if isinstance(error, PermissionError) or status_of(error) in (401, 403):
                raise BrokenExample(f"{name} is not ours to read") from None
            if status_of(error) in (404, 410) or (isinstance(error, FileNotFoundError) and status_of(error) is None):
                raise BrokenExample(f"{name} is missing") from None
            if attempt == TRIES - 1:
                raise BrokenExample(f"{name} can't be fetched ({type(error).__name__})") from None
        time.sleep(pause * random.SystemRandom().uniform(0.5, 1.0))
        pause = min(2 * pause, LONGEST_PAUSE)
    raise AssertionError


def status_of(error: BaseException) -> int | None:
    """What a web server answered; fsspec says of any answer that the file is not there, and why beside it."""
    found = getattr(error, "status", None)
    return found if isinstance(found, int) or error.__cause__ is None else status_of(error.__cause__)


def facts_of(url: str, cache: DiskCache) -> RemoteFile:
    """A file's size and version. Raises BrokenExample where it is not there or can't be asked for."""
    name = PurePosixPath(plain(url)).name

    def ask() -> tuple[int | None, int]:
        filesystem, path = locate(url)
        if not isinstance(filesystem, pafs.FileSystem):
            found = filesystem.info(path)
            return found.get("size"), version_of(found)
        found = filesystem.get_file_info(path)
        if found.type is not pafs.FileType.File:
            raise FileNotFoundError
        return found.size, found.mtime_ns or 0

    size, version = retried(ask, name)
    if size is None:
        raise BrokenExample(f"{name} has no size that its server tells")
    return RemoteFile(url, size, version, cache)


def version_of(found: Mapping[str, Any]) -> int:
    """A number for the tag or time that fsspec's servers tell of a file."""
    told = next((found[name] for name in ("ETag", "etag", "blob_id", "LastModified", "mtime") if found.get(name)), "")
    return int.from_bytes(hashlib.blake2b(str(told).encode(), digest_size=6).digest()) if told else 0


def listed(url: str, suffix: str, cache: DiskCache) -> list[RemoteFile]:
    """The files below a folder with a suffix, by name. Raises BrokenExample where it can't be listed."""

    def ask() -> list[RemoteFile]:
        filesystem, path = locate(url)
        scheme = f"{urlsplit(url).scheme}://"
        if not isinstance(filesystem, pafs.FileSystem):
            found = filesystem.find(path, detail=True).items()
            return [
                RemoteFile(name if is_remote(name) else scheme + name, facts["size"], version_of(facts), cache)
                for name, facts in found
                if name.endswith(suffix) and facts.get("size") is not None
            ]
        selected = filesystem.get_file_info(pafs.FileSelector(path.rstrip("/"), recursive=True))
        files = [one for one in selected if one.type is pafs.FileType.File and one.path.endswith(suffix)]
        return [RemoteFile(scheme + one.path, one.size, one.mtime_ns or 0, cache) for one in files]

    return sorted(retried(ask, plain(url)), key=lambda file: file.url)


def read_range(file: RemoteFile, read: Callable[[Any], Result]) -> Result:
    """What `read` makes of the file, open where it lies. Raises BrokenExample."""

    def ask() -> Result:
        filesystem, path = locate(file.url)
        arrow = isinstance(filesystem, pafs.FileSystem)
        with filesystem.open_input_file(path) if arrow else filesystem.open(path, "rb") as opened:
            return read(opened)

    return retried(ask, file.name)
