"""Makes room on Python's stack for code that makes many calls or nests deeply.

CPython keeps frames in chunks of 16 KB. It gets a chunk from the system when a call needs one, and
gives it back when that call returns. If a loop runs at the end of a chunk, each call in it pays for
that, some 10 microseconds. Tracing, whose calls nest deeply, is a fifth slower for it. A chunk is
larger if its first frame is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

R = TypeVar("R")

# A frame with this many slots takes a chunk of 512 KB, and leaves half of it to the next frames.
# Unused pages are never touched.
_SLOTS = 33_000


def with_room(call: Callable[..., R], *args: object, **kwargs: object) -> R:
    """Returns the result of a call. It costs one chunk, and calls inside it cost hardly any."""
    return call(*args, **kwargs)


with_room.__code__ = with_room.__code__.replace(co_stacksize=_SLOTS)


# Levels of regions inside one another for which there is room on a stack of 1 MB in C, too.
DEEPEST = 1000
_FRAMES = 8  # that lowering, which takes most, has on Python's stack for a level

_before = 0  # the recursion limit without what is added for the calls of `with_depth` under way
_added = 0


def with_depth(levels: int, call: Callable[..., R], *args: object, **kwargs: object) -> R:
    """Returns the result of a call, made while Python's recursion limit is higher by so many levels
    of nested regions. The limit is a setting of the process. It gets its old value back when the
    last such call ends.

    There is no lock, since a signal could keep the end from taking it. Python runs another thread
    or a signal's handler only after a call has returned. So the lines below before a call, and that
    call itself, are one step.
    """
    global _before, _added
    frames = _FRAMES * (levels + 20)
    entered = False
    try:
        if not _added:
            _before = sys.getrecursionlimit()
        _added += frames
        entered = True
        sys.setrecursionlimit(_before + _added)
        result = call(*args, **kwargs)
    finally:
        if entered:
            _added -= frames
            sys.setrecursionlimit(_before + _added)
    return result
