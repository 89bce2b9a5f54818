"""Keep freed memory: on CPUs a training step frees and asks again for the same hundreds of megabytes."""

import ctypes
import sys

TOP_PAD, TRIM_THRESHOLD, MMAP_MAX = -2, -1, -4  # malloc.h's M_TOP_PAD, M_TRIM_THRESHOLD, M_MMAP_MAX


def keep_freed_memory() -> bool:
    """Tell glibc not to hand large blocks back to the system after each use; whether it could be told.

    Every tensor above its threshold otherwise costs a round of page faults: measured as 2 to 3 times the step's time
    (`opensiglip bench memory`). Other systems' allocators already keep theirs.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another libc
        return False
    return all([mallopt(MMAP_MAX, 0), mallopt(TRIM_THRESHOLD, 2**31 - 1), mallopt(TOP_PAD, 256 * 2**20)])
