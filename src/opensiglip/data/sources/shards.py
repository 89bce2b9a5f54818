"""From a pattern to the files of a sharded data set."""

import glob
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from opensiglip.data.example import BrokenExample
from opensiglip.data.sources.disk_cache import DiskCache, cache_folder
from opensiglip.data.sources.remote import RemoteFile, facts_of, listed
from opensiglip.data.sources.spec import Spec
from opensiglip.data.sources.split import Rows
from opensiglip.data.sources.url import is_remote, plain
from opensiglip.errors import UserError

MAX_SHARDS = 1_000_000
MAX_LANES = 1024
WINDOWS = 3  # shards of each lane that the disk cache has to hold: two of a window, and the next one's
ASKED_AT_ONCE = 16  # servers' answers to wait for side by side
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")


def find_shards(spec: Spec, suffix: str) -> list[Path]:
    """The files that a spec names, in order: a file, a folder of files with the suffix, a glob, `{000..999}` or
    `{a,b}`, or a text file that lists one a line (relative to its folder).

    Raises UserError where there is none, or one that is named is missing.
    """
    path = Path(spec.path).expanduser()
    try:
        if path.is_dir():
            files = sorted(path.glob(f"*{suffix}")) or sorted(path.rglob(f"*{suffix}"))
        elif path.suffix.lower() in (".txt", ".list") and path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            files = [path.parent / Path(line.strip()).expanduser() for line in lines if line.strip()]
        else:
            files = [Path(file) for pattern in expand(spec) for file in matches(pattern)]
    except (OSError, ValueError) as error:
        raise UserError(f"--data {spec.name} can't be read ({error}); name a file, folder, glob or list.") from None
    if not files:
        raise UserError(f"--data {spec.name}: no file matches; name {suffix} files, a folder of them or a list.")
    if missing := [file for file in files if not file.is_file()]:
        raise UserError(f"--data {spec.name}: {missing[0]} is missing ({len(missing)} of {len(files)} are).")
    return files


def find_files(spec: Spec, suffix: str) -> list[Path | RemoteFile]:
    """The same, of files here or elsewhere: a URL, a folder's ending in "/", a glob or braces; a list may name URLs.

    Raises UserError.
    """
    path = Path(spec.path).expanduser()
    if is_remote(spec.path):
        urls = expand(spec)
    elif path.suffix.lower() in (".txt", ".list") and path.is_file():
        urls = [line.strip() for line in read_list(path) if is_remote(line.strip())]
        if not urls:
            return list(find_shards(spec, suffix))
    else:
        return list(find_shards(spec, suffix))
    cache = DiskCache(cache_folder() / "shards", int(spec.cache_gb * 1e9))
    try:
        with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
            found = [file for some in pool.map(partial(look_up, suffix=suffix, cache=cache), urls) for file in some]
    except BrokenExample as reason:
        raise UserError(f"--data {spec.name}: {reason}; name {suffix} files that are there.") from None
    if not found:
        raise UserError(f"--data {spec.name}: no file matches; name {suffix} files, a folder of them or a list.")
    return list(found)


def folder_of(file: Path | RemoteFile) -> Path:
    """What paths in a shard are relative to: of one elsewhere, where the command is run."""
    return file.parent if isinstance(file, Path) else Path()


def look_up(url: str, suffix: str, cache: DiskCache) -> list[RemoteFile]:
    """The files of a URL, a glob or a folder. Raises BrokenExample."""
    if glob.has_magic(plain(url)):
        folder = url[: re.search(r"[*?\[]", url).start()].rpartition("/")[0] + "/"  # type: ignore[union-attr]
        return [file for file in listed(folder, suffix, cache) if fnmatch(file.url, url)]
    return listed(url, suffix, cache) if url.endswith("/") else [facts_of(url, cache)]


def check_cache(spec: Spec, files: Sequence[Path | RemoteFile], lanes: int) -> None:
    """Refuse a cache that shards would leave before they are read through. Raises UserError."""
    sizes = [file.size for file in files if isinstance(file, RemoteFile)]
    needed = min(sum(sizes), WINDOWS * lanes * max(sizes, default=0))
    if needed > spec.cache_gb * 1e9:
        raise UserError(
            f"--cache-gb {spec.cache_gb:g} is less than the {needed / 1e9:.3g} GB of --data {spec.name} that {lanes} "
            "lanes read at once; give more, or fewer lanes as ?lanes=16."
        )


def lanes_of(spec: Spec, usual: int) -> int:
    """Shards to read side by side. Raises UserError."""
    given = spec.options.get("lanes", str(usual))
    if not given.isdecimal() or not 1 <= int(given) <= MAX_LANES:
        raise UserError(f"--data {spec.name}: lanes is a whole number from 1 to {MAX_LANES}, not {given!r}.")
    return int(given)


def shards_of(
    indices: Sequence[int], rows: Rows, ends: NDArray[np.int64], files: Sequence[Path | RemoteFile]
) -> list[RemoteFile]:
    """The shards elsewhere that hold these rows, each once, in the order that they are asked for."""
    found = np.searchsorted(ends, [rows.row(index) for index in indices], side="right")
    return [file for shard in dict.fromkeys(found.tolist()) if isinstance(file := files[shard], RemoteFile)]


def read_list(path: Path) -> list[str]:
    """The lines of a list of shards. Raises UserError."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read ({error}); give a list of shards, one per line.") from None


def expand(spec: Spec) -> list[str]:
    """A pattern's braces written out, as a shell does: `{08..10}` is 08, 09, 10. Raises UserError for too many."""
    path = spec.path if is_remote(spec.path) else str(Path(spec.path).expanduser())
    pieces = BRACES.split(path)  # text and what stood in braces, in turn
    choices: list[list[str]] = []
    count = 1
    for at, piece in enumerate(pieces):
        numbers = RANGE.fullmatch(piece) if at % 2 else None
        if numbers is not None:
            first, last = int(numbers[1]), int(numbers[2])
            if not 0 <= last - first < MAX_SHARDS:
                raise UserError(f"--data {spec.name}: {{{piece}}} is not a range of up to {MAX_SHARDS:,} shards.")
            choices.append([str(number).zfill(len(numbers[1])) for number in range(first, last + 1)])
        else:
            choices.append(piece.split(",") if at % 2 else [piece])
        count *= len(choices[-1])
        if count > MAX_SHARDS:
            raise UserError(f"--data {spec.name} names over {MAX_SHARDS:,} shards; name fewer.")
    return ["".join(parts) for parts in product(*choices)]


def matches(pattern: str) -> list[str]:
    """A path as it is, a glob's files in the order of their names."""
    if Path(pattern).exists() or not glob.has_magic(pattern):
        return [pattern]
    return sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - pathlib's has no absolute patterns
