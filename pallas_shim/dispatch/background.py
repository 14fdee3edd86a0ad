"""Work in the background: compiling what has earned it, while the user's program runs on."""

from __future__ import annotations

import collections
import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

# Of the thread for compilers. On a busy machine, one of less priority would rarely run.
_NICENESS = 5

R = TypeVar("R")

_pool: ThreadPoolExecutor | None = None
_quiet_pool: ThreadPoolExecutor | None = None


class PythonEnds(Exception):
    """It is too late to begin something."""


class _Job(NamedTuple):
    work: Callable[[], None]
    lost: Callable[[], None] | None


# Those that aren't done. The first may be under way.
_jobs: collections.deque[_Job] = collections.deque()


def later(work: Callable[[], None], lost: Callable[[], None] | None = None) -> None:
    """Runs this when nothing else is being compiled, on a thread.

    Its priority is that of others, since it holds the interpreter's lock: on a busy machine, one of
    low priority would be away with it for longer than a user's thread should wait.

    When Python ends, it waits for the work under way, since compilers can't be stopped, and drops
    what hasn't begun. A process that is forked before the work is done calls ``lost`` instead.
    """
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(1, "pallas_shim_background")
    _jobs.append(_Job(work, lost))
    with contextlib.suppress(RuntimeError):  # Python is ending
        _pool.submit(_work)


def quietly(call: Callable[[str], R], argument: str) -> R:
    """Makes a call of a compiler, which doesn't hold the interpreter's lock, on a thread of low
    priority. Returns its result.

    Raises:
      PythonEnds
    """
    global _quiet_pool
    if _quiet_pool is None:
        _quiet_pool = ThreadPoolExecutor(1, "pallas_shim_compiler", initializer=_low_priority)
    try:
        under_way = _quiet_pool.submit(call, argument)
    except RuntimeError:
        raise PythonEnds from None
    return under_way.result()


def _work() -> None:
    try:
        if threading.main_thread().is_alive():
            _jobs[0].work()
    finally:
        _jobs.popleft()


def _low_priority() -> None:
    if hasattr(os, "setpriority") and os.uname().sysname == "Linux":  # where threads have their own
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


def _start_over() -> None:
    """Runs in a forked process, which has no such threads."""
    global _pool, _quiet_pool
    _pool = _quiet_pool = None
    while _jobs:
        lost = _jobs.popleft().lost
        if lost is not None:
            lost()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_start_over)
