"""How long work in Python is done that makes many objects: tracing, lowering, the passes."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

from pallas_shim.evaluator.call_stack import with_room

R = TypeVar("R")


def gc_paused(call: Callable[..., R], *args: object, **kwargs: object) -> R:
    """What a call gives, made with room on the stack and without garbage collection.

    A full collection walks all that JAX holds, which takes as long as planning a small kernel, and
    a fifth of what JAX takes to trace an unrolled one.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        return with_room(call, *args, **kwargs)
    finally:
        if was_on:
            gc.enable()
