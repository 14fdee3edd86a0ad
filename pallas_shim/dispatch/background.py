"""Work in the background: compiling what has earned it, while the user's program runs on."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

_pool: ThreadPoolExecutor | None = None
_is_working = False
_is_usable = True  # not in a process forked while this was at work


def later(work: Callable[[], None]) -> None:
    """Runs this when nothing else is being compiled, on a thread of low priority.

    When Python ends, it waits for the work under way, since compilers can't be stopped, and drops
    what hasn't begun.
    """
    global _pool
    if not _is_usable:
        return
    if _pool is None:
        _pool = ThreadPoolExecutor(1, "pallas_shim_background", initializer=_with_low_priority)
    with contextlib.suppress(RuntimeError):  # Python is ending
        _pool.submit(_work, work)


def _work(work: Callable[[], None]) -> None:
    global _is_working
    if not threading.main_thread().is_alive():
        return
    _is_working = True
    try:
        work()
    finally:
        _is_working = False


def _with_low_priority() -> None:
    if hasattr(os, "setpriority") and os.uname().sysname == "Linux":  # where threads have their own
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def _start_over() -> None:
    """Runs in a forked process, which has no such thread."""
    global _pool, _is_usable, _is_working
    _is_usable = _is_usable and not _is_working
    _pool, _is_working = None, False


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_start_over)
