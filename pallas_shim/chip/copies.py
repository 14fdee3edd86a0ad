"""When copies are done: what a DMA engine makes of those that a kernel starts and awaits."""

from __future__ import annotations

import collections
from collections.abc import Hashable
from typing import NamedTuple

# What a kernel on one core copies from and to. Other copies reach other cores or chips.
LOCAL = frozenset({"hbm", "vmem", "smem"})


class Rates(NamedTuple):
    """In cycles of the core: how long a copy takes that finds the engine idle, beside its bytes
    (``latency``); what each copy occupies the engine for, beside its bytes (``start``); and the
    bytes that are moved in a cycle from and to HBM (``bandwidth``)."""

    bandwidth: float
    latency: float
    start: float


class Flight(NamedTuple):
    """A copy: what it moves, and the cycles at which it was started, began to move, and was
    done."""

    kind: str
    operand: int | None
    size: int
    issued: float
    begun: float
    done: float


class Engine:
    """Moves what is copied between HBM and a core's memories, in the order in which it was asked.

    ``busy``: cycles in which bytes were moved. ``flights``: the first copies.
    """

    _MOST_FLIGHTS = 4000

    def __init__(self, rates: Rates) -> None:
        self._rates = rates
        self._free = 0.0
        self._flying: dict[Hashable, collections.deque[tuple[int, float]]] = {}
        self.busy = 0.0
        self.last = 0.0
        self.flights: list[Flight] = []

    def start(self, flag: Hashable, kind: str, operand: int | None, size: int, now: float) -> None:
        """A copy is started, whose end the semaphore ``flag`` tells."""
        rates = self._rates
        begun = max(now, self._free)
        moving = rates.start + (size / rates.bandwidth if "hbm" in kind else 0.0)
        self._free = begun + moving
        self.busy += moving
        done = self._free + rates.latency
        self.last = max(self.last, done)
        self._flying.setdefault(flag, collections.deque()).append((size, done))
        if len(self.flights) < self._MOST_FLIGHTS:
            self.flights.append(Flight(kind, operand, size, now, begun, done))

    def wait(self, flag: Hashable, size: int | None, now: float) -> float:
        """The time at which copies of ``size`` bytes that tell ``flag`` are done (None: all)."""
        flying = self._flying.get(flag)
        while flying and (size is None or size > 0):
            moved, done = flying.popleft()
            now = max(now, done)
            if size is not None:
                size -= moved
        return now
