"""Shows the progress of a long grid, on a terminal only."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

# A grid that ends sooner than this many seconds shows nothing.
_QUIET_SECONDS = 2.0
_EVERY_SECONDS = 0.2


def over_grid(
    name: str, bounds: Sequence[int], number: Callable[[int], Any] = np.int32
) -> Iterator[tuple[Any, ...]]:
    """The cells of a grid in order, last axis fastest, each a tuple of such numbers; reports
    progress if that is wanted."""
    cells = _cells(bounds, number)
    if sys.stderr is None or not sys.stderr.isatty():
        return cells
    return _reported(name, math.prod(bounds), cells)


def _cells(bounds: Sequence[int], number: Callable[[int], Any]) -> Iterator[tuple[Any, ...]]:
    """Like itertools.product, which would first make a list of each axis."""
    if not bounds:
        yield ()
        return
    *outer, last = bounds
    for head in _cells(outer, number):
        for index in map(number, range(last)):
            yield (*head, index)


def _reported(
    name: str, total: int, cells: Iterator[tuple[Any, ...]]
) -> Iterator[tuple[Any, ...]]:
    start = time.monotonic()
    next_report = start + _QUIET_SECONDS
    shown = False
    try:
        for done, cell in enumerate(cells):
            now = time.monotonic()
            if now >= next_report:
                next_report = now + _EVERY_SECONDS
                shown = True
                left = (now - start) / done * (total - done) if done else float("inf")
                sys.stderr.write(
                    f"\r\x1b[Kpallas_shim: {name} {done:,}/{total:,} cells "
                    f"({100 * done // total}%), {left:.0f} s left"
                )
                sys.stderr.flush()
            yield cell
    finally:
        if shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
