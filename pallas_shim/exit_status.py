"""Another exit status for a script that ended with 0: what a tool has found is to be seen."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import os
import signal
import sys
import time
import warnings

# The seconds within which Python has to end. Otherwise the status stays as it is.
_SECONDS = 20.0

_wanted: int | None = None
_registered = False


def register() -> None:
    """Registers the change of the status, once. Python runs what was registered first last, so the
    earlier this is called, the better."""
    global _registered
    if not _registered:
        _registered = True
        atexit.register(_change)


def replace_success(status: int) -> None:
    """Has this process end with ``status`` if it would end with 0. The first call counts."""
    global _wanted
    if _wanted is None:
        _wanted = status


def _change() -> None:
    """Ends the process with the wanted status, unless it fails.

    Python tells nobody with which status it ends: the exception of sys.exit has gone by now. So a
    forked child ends the way that this process was about to, and shows it the status. Only if that
    is 0, this process ends with another one.
    """
    global _wanted
    status, _wanted = _wanted, None
    if status is None or not hasattr(os, "fork"):
        return
    # It has ended; what Ctrl-C ended now would be this.
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # Python tries again, and complains then
            stream.flush()
    if _status_of_a_child() == 0:
        atexit._clear()  # they have run, and this call of exit would run them again
        ctypes.pythonapi.Py_Exit(status)


def _status_of_a_child() -> int | None:
    """The status with which this process is about to end. None: it can't be found out."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of threads: the child only ends
            child = os.fork()
    except (OSError, RuntimeError):
        return None
    if child == 0:
        _end_without_traces()
        return None  # and Python goes on to end
    end = time.monotonic() + _SECONDS
    while True:
        ended, found = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(found)
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.005)


def _end_without_traces() -> None:
    """Keeps a forked process, which ends now, from running the ends of objects and libraries. They
    may write files, or wait for threads that it doesn't have."""
    held = gc.get_objects()
    held += gc.get_referents(*held)
    gc.freeze()
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(held))
    libc = ctypes.CDLL(None)
    on_exit = getattr(libc, "on_exit", None)  # of glibc: called with the status, the last one first
    if on_exit is not None:
        on_exit(libc._exit, None)
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(null, descriptor)


def _start_over() -> None:
    """Runs in a forked process, which found nothing yet."""
    global _wanted
    _wanted = None


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_start_over)
