"""Shows how far a long grid or loop is."""

from __future__ import annotations

import contextlib
import functools
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
# So many rounds of a loop show nothing, so that a short loop doesn't pay for it.
_FEW_ROUNDS = 256
# The time is looked at about this often, in seconds, whatever a cell takes.
_LOOKS = 0.05


class Display(Protocol):
    """What shows a number of cells or rounds."""

    def update(self, done: int) -> None: ...
    def close(self) -> None: ...


# Given a title, a total or None, a unit, and the seconds since it began.
Shows = Callable[[str, int | None, str, float], Display]

_shows: Shows | None = None


class _Here(threading.local):
    """``shown``: what this thread shows. Loops inside it show nothing."""

    shown: _Shown | None = None


_here = _Here()


def show_with(shows: Shows | None) -> None:
    """Sets what shows progress. None: nothing does."""
    global _shows
    _shows = shows


def over_grid(
    name: str, bounds: Sequence[int], number: Callable[[int], Any] = np.int32
) -> Iterator[tuple[Any, ...]]:
    """The cells of a grid in order, last axis fastest, each a tuple of such numbers."""
    cells = _cells(bounds, number)
    total = math.prod(bounds)
    if _shows is None or _here.shown is not None or total < 2:  # a loop in the cell may show more
        return cells
    take = functools.partial(itertools.islice, cells)
    return itertools.chain.from_iterable(_batches(take, _shows, lambda: name, total, "cells"))


def may_show(total: int) -> bool:
    """Whether a loop of so many rounds shows its progress, if it is the outermost one."""
    return total > _FEW_ROUNDS


def over_rounds(name: Callable[[], str], total: int, rounds: Iterable[Any]) -> Iterable[Any]:
    """The rounds of a loop."""
    if _shows is None or not may_show(total) or _here.shown is not None:
        return rounds
    take = functools.partial(itertools.islice, iter(rounds))
    return itertools.chain.from_iterable(
        _batches(take, _shows, name, total, "rounds", _FEW_ROUNDS)
    )


def rounds(name: Callable[[], str], total: int | None = None) -> Iterable[Iterable[None]]:
    """Batches of rounds without an end, for a loop that ends itself. ``total``: how many it will
    have, if that is known."""
    if _shows is None or _here.shown is not None:
        return (itertools.repeat(None),)
    take = functools.partial(itertools.repeat, None)
    return _batches(take, _shows, name, total, "rounds", _FEW_ROUNDS, endless=True)


def numbered_rounds(
    name: Callable[[], str], low: int, high: int, start: int, total: int | None = None
) -> Iterable[Iterable[int]]:
    """The same with numbers, from ``start`` on. After ``high`` comes ``low``."""
    if _shows is None or _here.shown is not None:
        return itertools.chain((range(start, high + 1),), itertools.repeat(range(low, high + 1)))
    at = start

    def take(count: int) -> Iterable[int]:
        nonlocal at
        first = at if at <= high else low
        at = min(first + count, high + 1)
        return range(first, at)

    return _batches(take, _shows, name, total, "rounds", _FEW_ROUNDS, endless=True)


def _batches(
    take: Callable[[int], Iterable[Any]],
    shows: Shows,
    name: Callable[[], str],
    total: int | None,
    unit: str,
    silent: int = 0,
    endless: bool = False,
) -> Iterator[Iterable[Any]]:
    """What ``take`` gives, in batches, so that an item doesn't pay for a look at the clock. During
    the ``silent`` first ones, loops inside may show theirs."""
    begun = time.monotonic()
    if silent:
        yield take(silent)
    shown = _Shown(shows, name, total, unit, begun, silent)
    _here.shown = shown
    try:
        last, batch = time.monotonic(), 1
        while endless or not shown.is_over():
            yield take(batch)
            now = time.monotonic()
            shown.went_on(batch, now)
            if now - last < _LOOKS:
                batch *= 2
            elif batch > 1:
                batch //= 2
            last = now
    finally:
        shown.close()


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
    """What one thread shows: the outermost grid or loop, of which ``done`` cells or rounds are."""

    def __init__(
        self,
        shows: Shows,
        name: Callable[[], str],
        total: int | None,
        unit: str,
        begun: float,
        done: int,
    ):
        self._shows, self._name, self._total, self._unit = shows, name, total, unit
        self._begun, self._done = begun, done
        self._display: Display | None = None

    def is_over(self) -> bool:
        return self._total is not None and self._done >= self._total

    def went_on(self, count: int, now: float) -> None:
        self._done += count
        elapsed = now - self._begun
        if self._display is None and elapsed > QUIET_SECONDS:
            self._display = self._shows(self._name(), self._total, self._unit, elapsed)
        if self._display is not None:
            total = self._total
            self._display.update(self._done if total is None else min(self._done, total))

    def close(self) -> None:
        if _here.shown is self:
            _here.shown = None
        if self._display is not None:
            self._display.close()


class LogLines:
    """A line on stderr every few seconds, for a log."""

    def __init__(self, name: str, total: int | None, unit: str, elapsed: float):
        self._name, self._total, self._unit = name, total, unit
        self._begun = self._last = time.monotonic() - elapsed

    def update(self, done: int) -> None:
        now = time.monotonic()
        if now - self._last < LOG_SECONDS or sys.stderr is None:
            return
        self._last = now
        rate = done / (now - self._begun)
        if self._total is None:
            far, end = f"{done:,} {self._unit}", f"{now - self._begun:,.0f} s so far"
        else:
            far = f"{done:,} of {self._total:,} {self._unit} ({100 * done // self._total}%)"
            end = f"{(self._total - done) / rate:,.0f} s left"
        with contextlib.suppress(OSError, ValueError):  # it may be closed
            print(
                f"pallas_shim: {self._name}: {far}, {rate:,.0f} a second, {end}",
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

    def shows(name: str, total: int | None, unit: str, elapsed: float) -> Display:
        bar = Bar(
            desc=f"pallas_shim: {name}", total=total, unit=f" {unit}", file=sys.stderr,
            leave=False, dynamic_ncols=True,
        )  # fmt: skip
        bar.start_t -= elapsed
        return bar

    return shows
