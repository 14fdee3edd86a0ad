"""Work in the background: compiling what has earned it, while the user's program runs on."""

from __future__ import annotations

import collections
import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

# Of the thread. On a busy machine, one of less priority would rarely run, and sometimes be away
# with the interpreter's lock.
_NICENESS = 5

_pool: ThreadPoolExecutor | None = None


class _Job(NamedTuple):
    work: Callable[[], None]
    lost: Callable[[], None] | None


# Those that aren't done. The first may be under way.
_jobs: collections.deque[_Job] = collections.deque()


def later(work: Callable[[], None], lost: Callable[[], None] | None = None) -> None:
    """Runs this when nothing else is being compiled, on a thread of low priority.

    When Python ends, it waits for the work under way, since compilers can't be stopped, and drops
    what hasn't begun. A process that is forked before the work is done calls ``lost`` instead.
    """
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(1, "pallas_shim_background", initializer=_with_low_priority)
    _jobs.append(_Job(work, lost))
    with contextlib.suppress(RuntimeError):  # Python is ending
        _pool.submit(_work)


def _work() -> None:
    try:
        if threading.main_thread().is_alive():
            _jobs[0].work()
    finally:
        _jobs.popleft()


def _with_low_priority() -> None:
    if hasattr(os, "setpriority") and os.uname().sysname == "Linux":  # where threads have their own
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


def _start_over() -> None:
    """Runs in a forked process, which has no such thread."""
    global _pool
    _pool = None
    while _jobs:
        lost = _jobs.popleft().lost
        if lost is not None:
            lost()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_start_over)
