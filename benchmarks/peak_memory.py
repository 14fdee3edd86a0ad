"""The peak memory of this process."""

from __future__ import annotations

import contextlib
import gc
import resource


def peak() -> int:
    """The peak memory of the process in bytes.

    On Linux this reads Linux's own figure, because ru_maxrss starts with the parent's peak there.
    """
    with contextlib.suppress(OSError), open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def peak_from_now_on() -> int:
    """Resets the peak after start-up, if Linux allows it. Returns the peak so far."""
    gc.collect()
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return peak()
