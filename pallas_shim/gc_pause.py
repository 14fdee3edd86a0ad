"""How long work in Python is done that makes many objects: tracing, lowering, the passes."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from typing import TypeVar

from pallas_shim.evaluator.call_stack import with_room

R = TypeVar("R")


def gc_paused(call: Callable[..., R], *args: object, **kwargs: object) -> R:
    """What a call gives, made with room on the stack and without garbage collection.

    A full collection walks all that JAX holds, which takes as long as planning a small kernel, and
    a fifth of what JAX takes to trace an unrolled one.
    """
    if not gc.isenabled():
        return with_room(call, *args, **kwargs)
    # Only who found it on turns it off, and on again; twice, as in `as_xla`, since a signal or a
    # debugger may raise anywhere.
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
    """In a forked process no other thread is left that would turn collection on again."""
    if _pausing:
        _pausing.clear()
        gc.enable()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_resume)
