"""Keep freed memory: on CPUs a training step frees and asks again for the same hundreds of megabytes."""

import ctypes
import sys

TOP_PAD, TRIM_THRESHOLD, MMAP_MAX = -2, -1, -4  # malloc.h's M_TOP_PAD, M_TRIM_THRESHOLD, M_MMAP_MAX


def keep_freed_memory() -> bool:
    """Tell glibc not to hand large blocks back to the system after each use; whether it could be told.

    Every tensor above its threshold otherwise costs a round of page faults; `opensiglip bench memory` says how much.
    Other systems' allocators already keep theirs.
    """
    libc = _glibc()
    if libc is None:
        return False
    return all([libc.mallopt(MMAP_MAX, 0), libc.mallopt(TRIM_THRESHOLD, 2**31 - 1), libc.mallopt(TOP_PAD, 256 * 2**20)])


def return_freed_memory() -> bool:
    """Hand back what lies unused between live blocks, which slowly grows while nothing is returned; whether any was."""
    libc = _glibc()
    return libc is not None and bool(libc.malloc_trim(0))


def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL("libc.so.6") if sys.platform.startswith("linux") else None
    except OSError:  # another libc
        return None
    return libc if libc is not None and hasattr(libc, "malloc_trim") else None
