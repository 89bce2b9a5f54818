"""A folder on a node's own disk that its ranks and workers share: files made once, whole or absent, within a bound.

A reader keeps what it opened: removing a file takes away only its name. So nothing is locked while it is read.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import lock_descriptor


def cache_folder() -> Path:
    """Where what can be made again is kept for this user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "opensiglip"


@dataclass(frozen=True)
class DiskCache:
    """Files by name, at most `most` bytes of them but for those in use; what was used longest ago goes first."""

    root: Path
    most: int

    def open(self, name: str, make: Callable[[Path], None]) -> int:
        """A descriptor of the file, which `make` writes to the path it is given where no process of the node has.

        Raises OSError, and what `make` does.
        """
        path = self.root / hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=16).hexdigest()
        try:
            return opened(path)
        except FileNotFoundError:
            self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / f"{path.name[:2]}.lock").open("w") as lock:
            lock_descriptor(lock.fileno())  # given back by the kernel, whatever becomes of this process
            try:
                return opened(path)  # another process was quicker
            except FileNotFoundError:
                pass
            part = path.with_suffix(".part")
            try:
                make(part)
                descriptor = os.open(part, os.O_RDONLY)  # before it has its name: from then on others may remove it
                part.replace(path)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            self._trim()
            return descriptor

    def holds(self, name: str) -> bool:
        """Is the file there?"""
        return (self.root / hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=16).hexdigest()).exists()

    def _trim(self) -> None:
        files = []
        for entry in os.scandir(self.root):
            if "." not in entry.name:
                try:
                    facts = entry.stat()
                except FileNotFoundError:  # another process trims too
                    continue
                files.append((facts.st_mtime_ns, facts.st_size, Path(entry.path)))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.most:
                return
            path.unlink(missing_ok=True)
            total -= size


def opened(path: Path) -> int:
    """A descriptor of a file, which counts as used now. Raises FileNotFoundError."""
    descriptor = os.open(path, os.O_RDONLY)
    os.utime(descriptor)
    return descriptor
