"""Copies in flight, and semaphores: what a device does between a DMA's start and its wait.

Here a copy is done when it starts. On a device it may be done at any time until its wait has been
served. So until then, its target is undefined, and its source has to stay as it is. Copies on one
semaphore may finish in any order: a copy is done for certain only when the semaphore couldn't have
reached what was awaited without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from pallas_shim.evaluator.checks.place import AnyPlace
from pallas_shim.evaluator.checks.run import AccessSite, Activation
from pallas_shim.evaluator.findings import Access
from pallas_shim.evaluator.program import Array

# The most work for an exact answer whether two strided views overlap.
_MOST_WORK = 100_000


class Moment(NamedTuple):
    """An access at a moment: of a program, in a cell."""

    site: AccessSite
    program: str | None
    cell: tuple[int, ...] | None

    def access(self, indices: str = "") -> Access:
        return self.site.access(indices, self.cell, self.program)


def _now(activation: Activation, site: AccessSite) -> Moment:
    return Moment(site, activation.program, activation.cell)


class Part:
    """The elements that an access touches now, of memory of a known shape. ``moment``: of a copy's
    access."""

    __slots__ = ("place", "leaves", "view", "room", "moment")

    def __init__(
        self,
        place: AnyPlace,
        leaves: Sequence[Any],
        room: np.ndarray,
        moment: Moment | None = None,
    ) -> None:
        self.moment = moment
        self.place = place
        self.leaves = leaves
        self.room = room
        self.view = place.view(room, leaves)

    def overlaps(self, other: Part) -> bool:
        if self.view is not None and other.view is not None:
            if not np.may_share_memory(self.view, other.view):
                return False
            work: Any = _MOST_WORK
            try:
                return np.shares_memory(self.view, other.view, max_work=work)
            except np.exceptions.TooHardError:
                pass
        marked = np.zeros(self.room.shape, bool)
        self.place.write(marked, self.leaves, True)
        return bool(other.place.read(marked, other.leaves).any())

    def text(self) -> str:
        return self.place.text(self.leaves)


class Flights:
    """The copies in flight that touch one piece of memory.

    ``room`` has the memory's shape. Its contents mean nothing, only its addresses.
    """

    __slots__ = ("reading", "writing", "room")

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.reading: list[tuple[StartedCopy, Part]] = []
        self.writing: list[tuple[StartedCopy, Part]] = []
        self.room = np.empty(shape, np.uint8)


class StartedCopy:
    """A copy that was started. ``size``: what it adds to its semaphore. ``target``: what it copies
    to, if that is known."""

    __slots__ = ("moment", "size", "target", "places")

    def __init__(self, moment: Moment, size: int, target: Part | None) -> None:
        self.moment = moment
        self.size = size
        self.target = target
        self.places: list[tuple[list[tuple[StartedCopy, Part]], tuple[StartedCopy, Part]]] = []

    def access(self) -> Access:
        return self.moment.access("" if self.target is None else self.target.text())

    def touches(self, flights: list[tuple[StartedCopy, Part]], part: Part) -> None:
        entry = (self, part)
        flights.append(entry)
        self.places.append((flights, entry))

    def land(self) -> None:
        for flights, entry in self.places:
            flights.remove(entry)


class SemaphoreCount:
    """One semaphore: the copies on it that aren't known to be done, and what was awaited of them.

    ``signals`` is its count from signals. ``mixed``: it gets both, so nothing is known of it.
    """

    __slots__ = ("copies", "awaited", "signals", "mixed", "last_wait", "last_signal")

    def __init__(self) -> None:
        self.copies: list[StartedCopy] = []
        self.awaited = 0
        self.signals = 0
        self.mixed = False
        self.last_wait: Moment | None = None
        self.last_signal: Moment | None = None

    def started(self) -> int:
        return sum(copy.size for copy in self.copies)

    def settle(self) -> None:
        """Lands the copies that are done for certain."""
        total = self.started()
        done = [copy for copy in self.copies if self.awaited > total - copy.size]
        for copy in done:
            copy.land()
            self.copies.remove(copy)
            self.awaited -= copy.size


class Semaphores:
    """The counts of an array of semaphores, by their numbers in it."""

    __slots__ = ("numbers", "counts")

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.numbers = np.arange(math.prod(shape)).reshape(shape)
        self.counts: dict[int, SemaphoreCount] = {}

    def at(self, place: AnyPlace, leaves: Sequence[Any]) -> SemaphoreCount:
        number = int(np.asarray(place.read(self.numbers, leaves)).reshape(-1)[0])
        return self.counts.setdefault(number, SemaphoreCount())


# -- what the instructions do -----------------------------------------------------------------


class Side(NamedTuple):
    """One side of a copy: its site, its place, and how many leaves the place has."""

    site: AccessSite
    place: AnyPlace
    leaves: int


def start(
    site: AccessSite,
    from_: Side | None,
    to: Side | None,
    semaphore: tuple[AnyPlace, int],
    size: Callable[[Sequence[Any]], int],
) -> Callable[..., tuple[()]]:
    """A copy starts. The operands: the semaphore's state and leaves, and for each side whose place
    is known, its flights and leaves. ``size`` gets the leaves of the target."""

    def run(activation: Activation, semaphores: Semaphores, *operands: Any) -> tuple[()]:
        place, number = semaphore
        rest: Sequence[Any] = operands
        count = semaphores.at(place, rest[:number])
        rest = rest[number:]
        source = target = None
        if from_ is not None:
            source, rest = _part(activation, from_, rest)
            _conflicts(activation, from_.site, source[0].writing, source[1], READ_IN_FLIGHT)
        if to is not None:
            target, rest = _part(activation, to, rest)
            _conflicts(activation, to.site, target[0].writing, target[1], WRITTEN_IN_FLIGHT)
            _conflicts(activation, to.site, target[0].reading, target[1], SOURCE_CHANGED)
        part = None if target is None else target[1]
        amount = size(() if part is None else part.leaves)
        copy = StartedCopy(_now(activation, site), amount, part)
        if source is not None:
            copy.touches(source[0].reading, source[1])
        if target is not None:
            copy.touches(target[0].writing, target[1])
        count.copies.append(copy)
        if count.mixed:
            _land_all(count)
        return ()

    return run


def _part(
    activation: Activation, side: Side, rest: Sequence[Any]
) -> tuple[tuple[Flights, Part], Sequence[Any]]:
    """The flights of a side and its part, from the operands, and the operands after them."""
    flights, leaves = rest[0], rest[1 : 1 + side.leaves]
    part = Part(side.place, leaves, flights.room, _now(activation, side.site))
    return (flights, part), rest[1 + side.leaves :]


READ_IN_FLIGHT = (
    "read-before-wait", "before a copy to it is known to be done",
    "Wait for the copy first; copies on one semaphore may finish in any order, so wait for all of "
    "them, or give each a semaphore",
)  # fmt: skip
WRITTEN_IN_FLIGHT = (
    "target-written-in-flight", "while a copy to it is in flight",
    "Wait for the copy before the memory is written to again",
)  # fmt: skip
SOURCE_CHANGED = (
    "source-changed-in-flight", "while a copy from it is in flight",
    "Wait for the copy before its source is changed",
)  # fmt: skip


def _conflicts(
    activation: Activation,
    site: AccessSite,
    flights: list[tuple[StartedCopy, Part]],
    part: Part,
    what: tuple[str, str, str],
) -> None:
    for copy, other in flights:
        if part.overlaps(other):
            rule, when, advice = what
            moment = other.moment
            access = copy.access() if moment is None else moment.access(other.text())
            activation.found(
                "sync", rule, f"{site.what} {site.ref or 'a ref'} {when}", advice, site,
                part.text(), (access,),
            )  # fmt: skip
            return


def read(site: AccessSite, place: AnyPlace) -> Callable[..., tuple[()]]:
    """The check that a load doesn't come before the wait of a copy to what it loads."""

    def run(activation: Activation, flights: Flights, *leaves: Array) -> tuple[()]:
        if flights.writing:
            part = Part(place, leaves, flights.room)
            _conflicts(activation, site, flights.writing, part, READ_IN_FLIGHT)
        return ()

    return run


def write(site: AccessSite, place: AnyPlace) -> Callable[..., tuple[()]]:
    """The check that a store doesn't touch what a copy reads or writes."""

    def run(activation: Activation, flights: Flights, *leaves: Array) -> tuple[()]:
        if flights.writing or flights.reading:
            part = Part(place, leaves, flights.room)
            _conflicts(activation, site, flights.writing, part, WRITTEN_IN_FLIGHT)
            _conflicts(activation, site, flights.reading, part, SOURCE_CHANGED)
        return ()

    return run


def wait_for_copy(
    site: AccessSite, semaphore: AnyPlace, number: int, size: Callable[[Sequence[Any]], int]
) -> Callable[..., tuple[()]]:
    """A wait for a copy's size. The first leaves are the semaphore's, the rest the target's."""

    def run(activation: Activation, semaphores: Semaphores, *leaves: Array) -> tuple[()]:
        count = semaphores.at(semaphore, leaves[:number])
        if count.signals:
            count.mixed = True
            _land_all(count)
        if count.mixed:
            return ()
        awaited = size(leaves[number:])
        missing = count.awaited + awaited - count.started()
        if missing > 0:
            twice = count.last_wait
            others = () if twice is None else (twice.access(),)
            rule, what = "wait-without-copy", "but no copy that adds to it was started"
            if twice is not None:
                rule, what = "waited-twice", "but all copies on it were awaited before"
            activation.found(
                "sync", rule,
                f"waits for {site.ref or 'a semaphore'}, {what}, so a device waits for ever",
                "Start a copy for each wait, with the same semaphore and as many bytes",
                site, "", others,
            )  # fmt: skip
            awaited -= missing
        count.awaited += awaited
        count.settle()
        count.last_wait = _now(activation, site)
        return ()

    return run


def signal(site: AccessSite, semaphore: AnyPlace) -> Callable[..., tuple[()]]:
    """A signal. The first operand after the state is its count."""

    def run(
        activation: Activation, semaphores: Semaphores, value: Array, *leaves: Array
    ) -> tuple[()]:
        count = semaphores.at(semaphore, leaves)
        count.signals += int(value)
        count.last_signal = _now(activation, site)
        if count.copies:
            count.mixed = True
            _land_all(count)
        return ()

    return run


def wait(site: AccessSite, semaphore: AnyPlace, decrement: bool) -> Callable[..., tuple[()]]:
    """A wait for a count. The first operand after the state is the count."""

    def run(
        activation: Activation, semaphores: Semaphores, value: Array, *leaves: Array
    ) -> tuple[()]:
        count = semaphores.at(semaphore, leaves)
        if count.copies:
            count.mixed = True
            _land_all(count)
        if count.mixed:
            return ()
        if count.signals < int(value):
            activation.found(
                "sync", "deadlock",
                f"waits for {site.ref or 'a semaphore'}, which has {count.signals} and needs "
                f"{int(value)}; nothing else signals it, so a device waits for ever",
                "Signal it before the wait", site,
            )  # fmt: skip
            count.signals = int(value)
        if decrement:
            count.signals -= int(value)
        return ()

    return run


def _land_all(count: SemaphoreCount) -> None:
    for copy in count.copies:
        copy.land()
    count.copies.clear()
    count.awaited = 0


def leave(site: AccessSite) -> Callable[..., tuple[()]]:
    """The check that nothing is left on semaphores when their kernel or scope ends."""

    def run(activation: Activation, semaphores: Semaphores) -> tuple[()]:
        name = site.ref or "a semaphore"
        for count in semaphores.counts.values():
            if count.copies and not count.mixed:
                copy = count.copies[-1]
                activation.found_at(
                    "sync", "copy-left-in-flight",
                    f"ends while a copy on {name} is in flight",
                    "Wait for each copy before the kernel, or the scope of its memory, ends",
                    copy.moment.site, copy.access(),
                )  # fmt: skip
                _land_all(count)
            elif count.signals and not count.mixed and count.last_signal is not None:
                activation.found_at(
                    "sync", "semaphore-left",
                    f"ends with {name} at {count.signals}, which breaks the next kernel",
                    "Wait for each signal, so that the semaphore ends at zero",
                    site, count.last_signal.access(),
                )  # fmt: skip
            count.signals = 0
        return ()

    return run
