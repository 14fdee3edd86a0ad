"""Keeps freed memory for the next array."""

from __future__ import annotations

import functools

import numpy as np

# The highest value to which glibc raises its threshold, less the memory that it may add for itself.
_LARGEST_KEPT = (32 << 20) - (64 << 10)


@functools.cache
def keep_freed_memory() -> None:
    """Has the C library keep freed arrays of up to 32 MB, once for the process.

    A program frees and makes arrays of the same few sizes. glibc gives memory of more than
    128 KB back to the system when it is freed, and each new array then costs a page fault every
    4 KB, up to 20 times what is computed on it. It learns from a freed block how large those
    are that come and go (mallopt(3), M_MMAP_THRESHOLD, "dynamic"), and keeps at most
    twice that. So one block is made and freed, of which no page is ever touched. Other
    C libraries don't mind.
    """
    np.empty(_LARGEST_KEPT, np.uint8)
