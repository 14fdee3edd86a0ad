"""Runs allocation-heavy work (tracing, lowering, the passes) with garbage collection paused."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from typing import TypeVar

from pallas_shim.evaluator.call_stack import with_room

R = TypeVar("R")


def gc_paused(call: Callable[..., R], *args: object, **kwargs: object) -> R:
    """Returns ``call(*args, **kwargs)``, run with room on the stack and garbage collection paused.

    A full collection walks all objects of JAX. That takes as long as planning a small kernel, and a
    fifth of the time in which JAX traces an unrolled one.
    """
    if not gc.isenabled():
        return with_room(call, *args, **kwargs)
    # Only a call that found collection on turns it off, and on again. It does so twice, as in
    # `as_xla`, since a signal or a debugger may raise anywhere.
    this_thread = threading.get_ident()
    try:
        try:
            _pausing.add(this_thread)
            gc.disable()
            return with_room(call, *args, **kwargs)
        finally:
            gc.enable()
    finally:
        gc.enable()
        _pausing.discard(this_thread)


_pausing: set[int] = set()  # the threads that have turned collection off


def _resume() -> None:
    """Turns collection on in a forked process, where the thread that paused it is gone."""
    if _pausing:
        _pausing.clear()
        gc.enable()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_resume)
