"""The disk: files and folders that a reader meets whole or not at all, and what it refuses as one sentence."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from opensiglip.errors import UserError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
REFUSED = FULL | {errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
RUST = re.compile(r"\(os error (\d+)\)")  # how safetensors and tokenizers end the system's messages


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """An empty folder beside `final` that takes its place, on the disk to the last byte, once the block has ended.

    Where the block raises, nothing of it stays: a full disk is not left fuller.
    """
    part = final.with_name(final.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        for path in [*part.rglob("*"), part]:  # the rename must not reach the disk before the content
            flush(path)
        shutil.rmtree(final, ignore_errors=True)
        part.rename(final)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    flush(final.parent)


@contextmanager
def whole_files(folder: Path, last: str) -> Iterator[Path]:
    """The same for files that join others in `folder`: each replaces its namesake whole.

    The file `last`, by which a reader knows that all are there, goes first and comes last.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        with whole_folder(folder) as part:
            yield part
        return
    with whole_folder(folder.with_name(folder.name + ".new")) as part:
        yield part
    new = folder.with_name(folder.name + ".new")
    (folder / last).unlink(missing_ok=True)
    for path in sorted((path for path in new.rglob("*") if path.is_file()), key=lambda path: path.name == last):
        place = folder / path.relative_to(new)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.replace(place)
    shutil.rmtree(new)
    flush(folder)


@contextmanager
def whole_file(final: Path) -> Iterator[Path]:
    """The same for a file."""
    part = final.with_name(final.name + ".part")
    try:
        yield part
        flush(part)
        part.replace(final)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # file systems that have no such thing for folders
            raise
    finally:
        os.close(descriptor)


def writable(out: Path, flag: str = "--out") -> None:
    """Raises UserError where the folder of `flag` can't be made or written to; leaves nothing there."""
    place = out.absolute()
    try:
        for near in (place, *place.parents):
            with suppress(FileNotFoundError):
                near.lstat()
                break
        with tempfile.TemporaryDirectory(dir=near):
            pass
    except OSError as error:
        raise UserError(f"{flag} {out} can't be written to ({error.strerror}); name another folder.") from error


def unwritten(out: Path | str, error: OSError, flag: str = "--out") -> UserError:
    """The error of the file or folder of `flag` that could not be written."""
    return UserError(f"{flag} {out} can't be written ({error.strerror or error}); name another place.")


@contextmanager
def refusals(path: Path, mend: str, need: int = 0) -> Iterator[None]:
    """Turn what the disk refuses inside, to us or to a library, into a UserError on `path`.

    need: bytes that were to be written there, where they are known.
    """
    place = path.absolute()
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        code = refusal(error)
        if code is None:
            raise
        named = getattr(error, "filename", None)
        if named is not None and code not in FULL and not Path(os.fsdecode(named)).absolute().is_relative_to(place):
            raise  # of another place, which was perhaps to be read
        raise UserError(
            f"{named or path} can't be written ({os.strerror(code)}{_room(path, need, code)}); {mend}."
        ) from error


def refusal(error: Exception) -> int | None:
    """The errno of an error by which the system refuses to write; None of any other."""
    if isinstance(error, OSError):
        code = error.errno
    else:
        found = RUST.search(str(error))
        code = int(found[1]) if found else None
    return code if code in REFUSED else None


def _room(path: Path, need: int, code: int) -> str:
    if code not in FULL:
        return ""
    place = next(one for one in (path, *path.absolute().parents) if one.exists())
    needed = f": {need / 1e6:.1f} MB are needed," if need else ":"
    return f"{needed} {shutil.disk_usage(place).free / 1e6:.1f} MB are free"
