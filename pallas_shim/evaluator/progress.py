"""Shows how far a long grid or loop is."""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

# What ends sooner than this many seconds shows nothing.
QUIET_SECONDS = 1.0
# The seconds between two lines in a log.
LOG_SECONDS = 10.0
# A loop of fewer rounds shows nothing, so that it doesn't pay for it either.
MANY_ROUNDS = 10_000
# The time is looked at about this often, in seconds, whatever a cell takes.
_LOOKS = 0.05


class Display(Protocol):
    """What shows a number of cells or rounds."""

    def update(self, done: int) -> None: ...
    def close(self) -> None: ...


Shows = Callable[[str, int, str], Display]

_shows: Shows | None = None


class _Here(threading.local):
    """``shown``: what this thread shows. Loops inside it show nothing."""

    shown: _Shown | None = None


_here = _Here()


def show_with(shows: Shows | None) -> None:
    """Sets what shows progress, given a title, a total and a unit. None: nothing does."""
    global _shows
    _shows = shows


def over_grid(
    name: str, bounds: Sequence[int], number: Callable[[int], Any] = np.int32
) -> Iterator[tuple[Any, ...]]:
    """The cells of a grid in order, last axis fastest, each a tuple of such numbers."""
    cells = _cells(bounds, number)
    if _shows is None or _here.shown is not None:
        return cells
    return _Shown(_shows, name, math.prod(bounds), "cells").through(cells)


def over_rounds(name: Callable[[], str], total: int, rounds: Iterable[Any]) -> Iterable[Any]:
    """The rounds of a loop."""
    if _shows is None or total < MANY_ROUNDS or _here.shown is not None:
        return rounds
    return _Shown(_shows, name(), total, "rounds").through(iter(rounds))


def abandon() -> None:
    """Ends what this thread shows, after an error. (The traceback keeps its frames alive.)"""
    if _here.shown is not None:
        _here.shown.close()


def _cells(bounds: Sequence[int], number: Callable[[int], Any]) -> Iterator[tuple[Any, ...]]:
    """Like itertools.product, which would first make a list of each axis."""
    return itertools.chain.from_iterable(_rows(bounds, number)) if bounds else iter([()])


def _rows(bounds: Sequence[int], number: Callable[[int], Any]) -> Iterator[Iterable[Any]]:
    *outer, last = bounds
    for head in _cells(outer, number):
        yield zip(*map(itertools.repeat, head), map(number, range(last)), strict=False)


class _Shown:
    """What one thread shows: the outermost grid or loop."""

    def __init__(self, shows: Shows, name: str, total: int, unit: str):
        self._shows, self._name, self._total, self._unit = shows, name, total, unit
        self._display: Display | None = None

    def through(self, items: Iterator[Any]) -> Iterator[Any]:
        """The items. They come in batches, so that an item doesn't pay for a look at the clock."""
        return itertools.chain.from_iterable(self._batches(items))

    def _batches(self, items: Iterator[Any]) -> Iterator[Iterable[Any]]:
        _here.shown = self
        begun = last = time.monotonic()
        done, batch = 0, 1
        while done < self._total:
            yield itertools.islice(items, batch)
            done += batch
            now = time.monotonic()
            if now - last < _LOOKS:
                batch *= 2
            elif batch > 1:
                batch //= 2
            last = now
            if self._display is None and now - begun > QUIET_SECONDS:
                self._display = self._shows(self._name, self._total, self._unit)
            if self._display is not None:
                self._display.update(min(done, self._total))
        self.close()

    def close(self) -> None:
        _here.shown = None
        if self._display is not None:
            self._display.close()


class LogLines:
    """A line on stderr every few seconds, for a log."""

    def __init__(self, name: str, total: int, unit: str):
        self._name, self._total, self._unit = name, total, unit
        self._begun = time.monotonic() - QUIET_SECONDS
        self._last = self._begun

    def update(self, done: int) -> None:
        now = time.monotonic()
        if now - self._last < LOG_SECONDS or sys.stderr is None:
            return
        self._last = now
        rate = done / (now - self._begun)
        left = (self._total - done) / rate
        share = 100 * done // self._total
        with contextlib.suppress(OSError, ValueError):  # it may be closed
            print(
                f"pallas_shim: {self._name}: {done:,} of {self._total:,} {self._unit} ({share}%), "
                f"{rate:,.0f} a second, {left:,.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        pass


def bars() -> Shows | None:
    """Bars for a terminal, made by tqdm. None: it isn't installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return None

    class Bar(tqdm):  # type: ignore[misc]
        monitor_interval = 0  # it needs no thread

        def update(self, done: float | None = 0) -> bool | None:
            return super().update((done or 0) - self.n)

    def shows(name: str, total: int, unit: str) -> Display:
        bar = Bar(
            desc=f"pallas_shim: {name}", total=total, unit=f" {unit}", file=sys.stderr,
            leave=False, dynamic_ncols=True,
        )  # fmt: skip
        bar.start_t -= QUIET_SECONDS
        return bar

    return shows
