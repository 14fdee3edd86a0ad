"""Keeps freed memory for the next array."""

from __future__ import annotations

import functools

import numpy as np

# The highest value to which glibc raises its threshold, less the memory that it may add for itself.
_LARGEST_KEPT = (32 << 20) - (64 << 10)


@functools.cache
def keep_freed_memory() -> None:
    """Makes the C library keep freed arrays of up to 32 MB. Once per process is enough.

    A program frees and makes arrays of the same few sizes. glibc returns freed blocks of more than
    128 KB to the system. Each new array then costs a page fault every 4 KB, up to 20 times the
    computation on it. glibc learns the size of short-lived blocks from a freed one (mallopt(3),
    M_MMAP_THRESHOLD, "dynamic"), and keeps at most twice that. So this allocates one block and
    frees it, without touching its pages. Other C libraries aren't affected.
    """
    np.empty(_LARGEST_KEPT, np.uint8)
