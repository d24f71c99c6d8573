"""What a process does with memory that it has freed."""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # numbers of glibc's malloc.h
KEPT = 512 * 2**20  # bytes
LARGEST_BLOCK = 32 * 2**20  # bytes; more is refused


def keep_freed_memory() -> bool:
    """Has glibc keep freed memory for the next update, which asks for the same blocks again.

    Otherwise it goes back to Linux after every update, and each page that is fetched anew is filled
    with zeros first. What is free beyond 512 MiB, and blocks above 32 MiB, still go back. Nothing
    that is computed changes.

    Returns:
        whether it was done: not on other systems, nor with a C library that has no such setting.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(library, "mallopt"):
        return False
    settings = {MMAP_THRESHOLD: LARGEST_BLOCK, TRIM_THRESHOLD: KEPT}
    return all(library.mallopt(*setting) == 1 for setting in settings.items())
