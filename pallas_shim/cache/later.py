"""What is put off until the process ends, so that nobody's call waits for it.

Work is done in the order in which it was put off, for a bounded time, and by one thread: that
which ends Python. What is left then isn't done, nor what a killed process had put off. A forked
child doesn't do what its parent put off.
"""

from __future__ import annotations

import atexit
import collections
import logging
import os
import time
from collections.abc import Callable

log = logging.getLogger("pallas_shim")

# For how many seconds the end of a process is put off.
SECONDS = 2.0
# More work than this isn't held: the oldest is done at once.
_MOST = 64

# Gets the seconds that are left.
Work = Callable[[float], None]

_put_off: collections.deque[Work] = collections.deque()
os.register_at_fork(after_in_child=_put_off.clear)


def at_exit(work: Work) -> None:
    """Puts work off."""
    _put_off.append(work)
    if len(_put_off) > _MOST:
        try:
            oldest = _put_off.popleft()
        except IndexError:  # another thread was faster
            return
        _do(oldest, SECONDS)


def do_all() -> None:
    """Does all that was put off, as far as there is time. Never raises."""
    end = time.perf_counter() + SECONDS
    try:
        while _put_off and time.perf_counter() < end:
            _do(_put_off.popleft(), end - time.perf_counter())
    except BaseException:  # the user, who wants Python to end, or a thread that did the last
        pass
    _put_off.clear()


def _do(work: Work, seconds: float) -> None:
    try:
        work(seconds)
    except Exception as error:
        log.warning("the program cache failed, a bug: %s: %s", type(error).__name__, error)


def register() -> None:
    """Has it done before what was registered to be done at exit until now."""
    atexit.unregister(do_all)
    atexit.register(do_all)
