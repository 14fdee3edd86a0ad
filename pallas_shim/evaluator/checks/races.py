"""Races between cells of a grid: which cell last touched each element.

Cells that may run at the same time are at different *turns*: their places along the grid's
parallel axes, or on a GPU their places in the grid. Two accesses to an element at different turns
are a race if one of them writes, unless both are atomic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from pallas_shim.evaluator.checks.place import AnyPlace
from pallas_shim.evaluator.checks.run import AccessSite, Activation
from pallas_shim.evaluator.findings import Access
from pallas_shim.evaluator.program import Array


class _Known(NamedTuple):
    """The first access of a site at a turn."""

    site: AccessSite
    turn: int
    atomic: bool
    access: Access


class Accesses:
    """The accesses to some memory, by their numbers. ``turns`` has the turn of each."""

    __slots__ = ("known", "turns", "_numbers")

    def __init__(self) -> None:
        self.known: list[_Known | None] = [None]
        self.turns = np.zeros(256, np.int64)
        self._numbers: dict[tuple[int, int], int] = {}

    def number(
        self,
        activation: Activation,
        site: AccessSite,
        turn: int,
        atomic: bool,
        text: Callable[[], str],
    ) -> int:
        """The number of the accesses of a site at a turn."""
        number = self._numbers.get((turn, site.number))
        if number is None:
            number = self._numbers[turn, site.number] = len(self.known)
            access = activation.access(site, text())
            self.known.append(_Known(site, turn, atomic, access))
            if number == len(self.turns):
                self.turns = np.concatenate([self.turns, np.zeros_like(self.turns)])
            self.turns[number] = turn
        return number

    def other(self, numbers: np.ndarray, turn: int, atomic: bool) -> _Known | None:
        """An access at another turn among these that isn't atomic too."""
        self.turns[0] = turn  # what nothing has touched agrees with all
        wrong = self.turns[np.abs(numbers)] != turn
        if not wrong.any():
            return None
        for number in np.unique(np.abs(numbers[wrong])):
            known = self.known[int(number)]
            if known is not None and not (atomic and known.atomic):
                return known
        return None


class History:
    """The last accesses of each element of some memory.

    ``writer`` and ``reader`` hold numbers of `accesses`, 0 for none. A reader is negative if
    elements were read at several turns.
    """

    __slots__ = ("writer", "reader", "accesses")

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.writer = np.zeros(shape, np.int32)
        self.reader = np.zeros(shape, np.int32)
        self.accesses = Accesses()

    def at(self, key: Any) -> History:
        """The part of it that a basic index leads to."""
        part = History.__new__(History)
        part.writer, part.reader = self.writer[key], self.reader[key]
        part.accesses = self.accesses
        return part


def note(
    site: AccessSite, place: AnyPlace, writes: bool, atomic: bool = False, compares: str = ""
) -> Callable[..., tuple[()]]:
    """Notes an access, and checks it against those at other turns.

    ``compares``: the last two operands are the "elements" that are written and those before, or the
    "memory" after the access and before. What is written and was there before needs no order: cores
    may all write the same.
    """

    def run(activation: Activation, history: History, *leaves: Array) -> tuple[()]:
        turn, accesses = activation.turn, history.accesses
        written = place.read(history.writer, leaves)
        changed: Any = True
        if compares:
            *leaves, value, before = leaves  # type: ignore[assignment]
            if written.any():
                if compares == "memory":
                    value, before = (place.read(np.asarray(m), leaves) for m in (value, before))
                changed = _differs(np.asarray(value), np.asarray(before))
                if not changed.any():
                    return ()
                changed = changed if changed.shape == written.shape else True
        number = accesses.number(activation, site, turn, atomic, lambda: place.text(leaves))
        other = accesses.other(np.where(changed, written, 0), turn, atomic)
        if other is None and writes:
            read = np.where(changed, place.read(history.reader, leaves), 0)
            other = accesses.other(read, turn, atomic)
        if other is not None:
            activation.found(
                "races", "cells",
                f"{site.what} {site.ref or 'a ref'} where another cell {other.site.what} it, and "
                "the two may run at the same time",
                "Give each cell elements of its own, use atomic operations, or declare the axis "
                "\"arbitrary\"",
                site, place.text(leaves), (other.access,),
            )  # fmt: skip
        if writes:
            place.write(history.writer, leaves, np.where(changed, number, written))
        else:
            before = place.read(history.reader, leaves)
            several = (before < 0) | ((before > 0) & (accesses.turns[np.abs(before)] != turn))
            place.write(history.reader, leaves, np.where(several, -number, number))
        return ()

    return run


def _differs(value: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Where two arrays differ, of which the first may broadcast. A NaN equals itself."""
    with np.errstate(invalid="ignore"):
        same = (value == before) | ((value != value) & (before != before))
    return ~np.broadcast_to(same, before.shape)
