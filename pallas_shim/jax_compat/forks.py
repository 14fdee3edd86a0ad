"""What a fork leaves of XLA."""

from __future__ import annotations

import ctypes
import os

from jax._src import xla_bridge

_is_lost = False


def xla_is_lost() -> bool:
    """Whether this process was forked from one in which XLA had begun to work.

    Then XLA's threads aren't here. Whoever asks it to compile waits for them forever.
    """
    return _is_lost


def _start_over() -> None:
    global _is_lost
    _is_lost = _is_lost or bool(xla_bridge._backends)
    for client in xla_bridge._backends.values():
        # A client's destructor waits for the threads, too. Python calls it at exit if nothing has
        # been compiled, which would refer to the client. So one reference is never given back.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(client))


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_start_over)
