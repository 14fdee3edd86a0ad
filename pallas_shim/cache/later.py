"""Work that is put off until the process ends, so that no call waits for it.

The work is done in order, for a bounded time, by the thread that ends Python. Work that is left
then is dropped. So is the work of a process that is killed. A forked child drops the work of its
parent.
"""

from __future__ import annotations

import atexit
import collections
import logging
import os
import time
from collections.abc import Callable

log = logging.getLogger("pallas_shim")

# The end of a process takes at most about this many seconds longer.
SECONDS = 2.0
# The queue's limit. Beyond it, the oldest work is done at once.
_MOST = 64

# Gets the seconds that are left.
Work = Callable[[float], None]

_put_off: collections.deque[Work] = collections.deque()
os.register_at_fork(after_in_child=_put_off.clear)


def at_exit(work: Work) -> None:
    """Puts work off until the process ends."""
    _put_off.append(work)
    if len(_put_off) > _MOST:
        try:
            oldest = _put_off.popleft()
        except IndexError:  # another thread was faster
            return
        _do(oldest, SECONDS)


def do_all() -> None:
    """Does the work that was put off, as far as time allows. Never raises."""
    end = time.perf_counter() + SECONDS
    try:
        while _put_off and time.perf_counter() < end:
            _do(_put_off.popleft(), end - time.perf_counter())
    except BaseException:  # Ctrl-C, or another thread took the last piece of work
        pass
    _put_off.clear()


def _do(work: Work, seconds: float) -> None:
    try:
        work(seconds)
    except Exception as error:
        log.warning("the program cache failed, a bug: %s: %s", type(error).__name__, error)


def register() -> None:
    """Registers `do_all` anew, so that it runs before all exit functions registered so far."""
    atexit.unregister(do_all)
    atexit.register(do_all)
