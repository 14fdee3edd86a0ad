"""The most memory that this process had."""

from __future__ import annotations

import contextlib
import gc
import resource


def peak() -> int:
    """The most memory that the process had, in bytes.

    Linux's own figure, since ru_maxrss begins there with what the process that started this had.
    """
    with contextlib.suppress(OSError), open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def peak_from_now_on() -> int:
    """Forgets, where Linux allows it, the memory that start-up needed; returns the peak so far."""
    gc.collect()
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return peak()
