"""Races between programs: accesses that no signal, wait or copy orders, by vector clocks.

Each program has a clock for every program: how far it knows that one to be. A signal passes on what
its sender knows. A wait learns what was passed on by all that must have happened for the semaphore
to reach its count: signals of one program happen in their order, copies in any. A copy's own
accesses are known to be over once the wait for its semaphore has learned of them; until then they
may happen at any time after its start.

The run goes in the programs' own order, with copies done when they start. Accesses are compared
element by element, by the addresses of the views, or of the single elements where a mask or indices
choose them.

Of two writes of equal values, either may come last. So a write that leaves memory as it was is no
race with another write, nor with a read that came after the value did.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from pallas_shim.evaluator.findings import Access, Finding

# A program: how many levels of programs are around it, and its number at the innermost.
Program = tuple[int, int]
Clock = dict[Program, int]
# A grid cell. None outside of a grid.
Cell = tuple[int, ...] | None

# The most work for an exact answer whether two strided views overlap.
_MOST_WORK = 100_000
# From so many accesses of one buffer on, those that everybody knows to be over are forgotten.
_MANY = 64


class Spot(NamedTuple):
    """A place in a kernel's code: the user's ``file:line``, and the kernel."""

    kernel: str
    source: str | None
    line: Callable[[], str | None]
    names: Sequence[str]


class _Moving:
    """A copy under way. ``learned``: for each of its steps, the program and its clock when a wait
    learned that the step is over; None until then."""

    __slots__ = ("cell", "clock", "learned", "program", "step", "spot")

    def __init__(
        self, program: Program, clock: Clock, spot: Spot, cell: Cell, steps: int
    ) -> None:
        self.program, self.clock, self.spot, self.cell = program, clock, spot, cell
        self.learned: list[tuple[Program, int] | None] = [None] * steps
        self.step = 0

    def is_over(self, step: int, known: Clock) -> bool:
        """Whether somebody with this clock knows that a step is over."""
        return any(at is not None and known.get(at[0], 0) >= at[1] for at in self.learned[step:])


@dataclasses.dataclass(slots=True, eq=False)
class _Touch:
    """An access: of a program at a time of its own, or of a step of a copy.

    ``elements``: the addresses of the elements of ``view`` that it touches, None if it touches all.
    ``number`` counts the accesses of a run; ``since`` is the number of the first access that this
    one stands for. ``changes``: it is a write that may have changed memory, or stands for one;
    ``stands_for_change``: it stands for one.
    """

    program: Program
    time: int
    copy: _Moving | None
    step: int
    view: np.ndarray
    elements: np.ndarray | None
    ends: tuple[int, int]
    writes: bool
    spot: Spot
    cell: Cell
    ref: str | None
    text: str
    number: int
    since: int
    changes: bool
    stands_for_change: bool = False


class _Suspect(NamedTuple):
    """A write that races with others if it changes memory, which isn't known before it happens.
    ``before``: the contents of its view."""

    write: _Touch
    others: list[_Touch]
    touches: dict[Any, _Touch]
    before: np.ndarray


class _Added(NamedTuple):
    """An addition to a semaphore."""

    amount: int
    program: Program
    copy: _Moving | None
    step: int
    clock: Clock


class _Semaphore:
    """``added``: what was added to it, and isn't known to be taken for certain. ``left``: how much
    of that is there."""

    __slots__ = ("added", "left")

    def __init__(self) -> None:
        self.added: list[_Added] = []
        self.left = 0

    def certain(self) -> list[_Added]:
        """The additions without which the semaphore couldn't have given what was taken."""
        found: list[_Added] = []
        rest: list[_Added] = []
        later: dict[Program, int] = {}  # for each program, what it added from there on
        for each in reversed(self.added):
            if each.copy is not None:
                tail = each.amount
            else:
                tail = later[each.program] = later.get(each.program, 0) + each.amount
            (found if self.left < tail else rest).append(each)
        self.added = rest[::-1]
        return found


class Clocks:
    """Vector clocks of the programs of one kernel, and the memory that they touched.

    ``report`` gets each race.
    """

    def __init__(self, report: Callable[[Finding], None]) -> None:
        self.report = report
        self.inside = 0
        self.said: set[Any] = set()
        self._forget()

    def _forget(self) -> None:
        self.clocks: dict[Program, Clock] = {}
        self.cells: dict[Program, Cell] = {}
        self.semaphores: dict[int, _Semaphore] = {}
        self.buffers: dict[int, tuple[np.ndarray, dict[Any, _Touch]]] = {}
        self.meetings: dict[Any, list[Clock]] = {}
        self.last: _Moving | None = None
        self.moving: _Moving | None = None
        self.kept: list[np.ndarray] = []
        self.number = 0
        self.suspect: _Suspect | None = None

    def clock(self, program: Program) -> Clock:
        clock = self.clocks.get(program)
        if clock is None:
            clock = self.clocks[program] = {program: 1}
        return clock

    # -- where programs are -----------------------------------------------------------------------

    def enter(self, program: Program) -> None:
        """A program begins a kernel."""
        if self.inside == 0:
            self._forget()
        self.inside += 1
        self.clock(program)

    def begin_cell(self, program: Program, cell: tuple[int, ...]) -> None:
        """A program begins a cell of its kernel's grid."""
        self.cells[program] = cell

    def leave(self, program: Program) -> None:
        """A program has ended a kernel."""
        self.decide()
        self.cells.pop(program, None)
        self.inside -= 1
        if self.inside == 0:
            self._forget()

    def come(self, program: Program, meeting: Any) -> None:
        """A program has come to a meeting."""
        clock = self.clock(program)
        self.meetings.setdefault(meeting, []).append(dict(clock))
        clock[program] += 1

    def met(self, program: Program, meeting: Any, members: int) -> None:
        """A program goes on after a meeting."""
        come = self.meetings[meeting]
        for other in come[-members:]:
            _learn(self.clock(program), other)

    # -- copies and semaphores --------------------------------------------------------------------

    def start(self, program: Program, spot: Spot, steps: int) -> None:
        """A program starts a copy."""
        clock = self.clock(program)
        self.last = _Moving(program, dict(clock), spot, self.cells.get(program), steps)
        clock[program] += 1

    @contextlib.contextmanager
    def step_of_last(self, step: int) -> Iterator[None]:
        """A context in which a step of the last copy runs that was started."""
        copy = self.last
        assert copy is not None
        outer, self.moving = self.moving, copy
        copy.step = step
        try:
            yield
        finally:
            self.moving = outer

    def add(self, program: Program, semaphore: np.ndarray, amount: int) -> None:
        """A program, or the step of a copy that runs, adds to a semaphore."""
        state = self._semaphore(semaphore)
        copy = self.moving
        if copy is not None:
            state.added.append(_Added(amount, copy.program, copy, copy.step, copy.clock))
        else:
            clock = self.clock(program)
            state.added.append(_Added(amount, program, None, 0, dict(clock)))
            clock[program] += 1
        state.left += amount

    def take(self, program: Program, semaphore: np.ndarray, amount: int, decrement: bool) -> None:
        """A program has waited for a semaphore."""
        state = self._semaphore(semaphore)
        clock = self.clock(program)
        if state.left < amount:
            self._learn_all(program)
            state.left = amount
        state.left -= amount
        for each in state.certain():
            _learn(clock, each.clock)
            if each.copy is not None:
                each.copy.learned[each.step] = (program, clock[program])
        if not decrement:
            state.left += amount

    def _learn_all(self, program: Program) -> None:
        """A program has waited for what isn't known here: a kernel before this one has added it, to
        a semaphore that was handed on. That may be all that has happened."""
        clock = self.clock(program)
        for other in self.clocks.values():
            _learn(clock, other)
        for _, touches in self.buffers.values():
            for touch in touches.values():
                if touch.copy is not None and touch.copy.learned[touch.step] is None:
                    touch.copy.learned[touch.step] = (program, clock[program])

    def _semaphore(self, semaphore: np.ndarray) -> _Semaphore:
        address = semaphore.__array_interface__["data"][0]
        if address not in self.semaphores:
            self.semaphores[address] = _Semaphore()
            self.kept.append(semaphore)  # so that nothing else gets its address
        return self.semaphores[address]

    # -- accesses ---------------------------------------------------------------------------------

    def touch(
        self,
        program: Program,
        ref: np.ndarray,
        view: np.ndarray,
        writes: bool,
        spot: Spot,
        name: str | None,
        numbers: np.ndarray | None = None,
        text: str | None = None,
    ) -> None:
        """A program, or the step of a copy that runs, reads or writes the elements of a view.

        It is called before that happens. ``numbers``: of the elements of the view, in its order, if
        only some are touched. ``text``: the indices of these.
        """
        self.decide()
        if not isinstance(view, np.ndarray) or not view.size:
            return
        elements = None if numbers is None else _addresses(view, numbers)
        if elements is not None and not elements.size:
            return
        root = view
        while isinstance(root.base, np.ndarray):
            root = root.base
        _, touches = self.buffers.setdefault(id(root), (root, {}))
        copy = self.moving
        known = self.clock(program) if copy is None else copy.clock
        ends = _ends(view)
        if elements is not None:
            ends = int(elements[0]), int(elements[-1]) + view.itemsize
        self.number += 1
        own = _Touch(
            program, known.get(program, 0), copy, 0 if copy is None else copy.step, view, elements,
            ends, writes, spot if copy is None else copy.spot,
            self.cells.get(program) if copy is None else copy.cell, name,
            _text(ref, view) if text is None else text, self.number, self.number, writes,
        )  # fmt: skip
        racing = [
            other
            for other in touches.values()
            if (other.writes or writes) and not _ordered(other, own, known)
            if other.ends[0] < ends[1] and ends[0] < other.ends[1] and _overlap(other, own)
        ]
        if racing and writes:
            self.suspect = _Suspect(own, racing, touches, view.copy())
        else:
            for other in racing:
                if other.changes:
                    self._race(other, own)
        if len(touches) >= _MANY:
            self._prune(touches)
        # A later access of the same elements stands for an earlier one of the same program.
        chosen = None if elements is None else elements.tobytes()
        key = (program if copy is None else copy, writes, ends, view.shape, view.strides, chosen)
        before = touches.get(key)
        if before is not None:
            clocks = list(self.clocks.values())
            if not all(_is_known(before, clock) for clock in clocks):
                own.since = before.since
                own.stands_for_change = before.changes
        touches[key] = own

    def decide(self) -> None:
        """Says whether the last write was a race, now that it has happened."""
        suspect, self.suspect = self.suspect, None
        if suspect is None:
            return
        own, others, touches, before = suspect
        changed = _changed(own.view, before)
        if not changed.size:
            own.changes = own.stands_for_change
        for other in others:
            if changed.size and _meet(changed, own.view.itemsize, other):
                self._race(other, own)
            elif not other.writes and self._changed_since(other, touches):
                self._race(other, own)

    def _changed_since(self, read: _Touch, touches: dict[Any, _Touch]) -> bool:
        """Whether memory may have changed after it was read."""
        return any(
            write.changes and write.number > read.since and _overlap(write, read)
            for write in touches.values()
        )

    def _prune(self, touches: dict[Any, _Touch]) -> None:
        clocks = list(self.clocks.values())
        for key, touch in list(touches.items()):
            if all(_is_known(touch, clock) for clock in clocks):
                del touches[key]

    def left(
        self, kernel: str, source: str | None, semaphore: str, program: str, counts: np.ndarray
    ) -> None:
        """A program has left a semaphore at counts other than zero."""
        numbers = ", ".join(
            map(str, np.unique(counts[np.nonzero(counts)] if counts.ndim else counts))
        )
        self.report(
            Finding(
                "sync", "semaphore-left", kernel,
                f"the kernel {kernel} ends with {semaphore} at {numbers} on {program}, which "
                "breaks the next kernel",
                "give each signal and each copy a wait of the same count",
                (Access("leaves", program=program),), semaphore, source,
            )
        )  # fmt: skip

    def _race(self, first: _Touch, second: _Touch) -> None:
        rule, message, advice = _words(first, second)
        accesses = (_access(second), _access(first))
        # A store gives the elements before it, too, so it is a load at the same line.
        fault = (rule, second.ref or first.ref, frozenset(a.where for a in accesses))
        if fault in self.said:
            return
        self.said.add(fault)
        self.report(
            Finding(
                "races", rule, second.spot.kernel, message, advice,
                accesses, second.ref or first.ref, second.spot.source,
            )
        )  # fmt: skip


def _learn(clock: Clock, other: Clock) -> None:
    for program, time in other.items():
        if time > clock.get(program, 0):
            clock[program] = time


def _is_known(touch: _Touch, known: Clock) -> bool:
    """Whether somebody with this clock knows that an access is over."""
    if touch.copy is not None:
        return touch.copy.is_over(touch.step, known)
    return known.get(touch.program, 0) >= touch.time


def _ordered(first: _Touch, second: _Touch, known: Clock) -> bool:
    if first.copy is not None and first.copy is second.copy:
        return True
    return _is_known(first, known)


def _ends(view: np.ndarray) -> tuple[int, int]:
    """The addresses of the first byte and of the one after the last."""
    low = high = view.__array_interface__["data"][0]
    for size, stride in zip(view.shape, view.strides, strict=True):
        if stride < 0:
            low += (size - 1) * stride
        else:
            high += (size - 1) * stride
    return low, high + view.itemsize


def _overlap(one: _Touch, two: _Touch) -> bool:
    if one.elements is not None:
        return _meet(one.elements, one.view.itemsize, two)
    if two.elements is not None:
        return _meet(two.elements, two.view.itemsize, one)
    work: Any = _MOST_WORK
    try:
        return np.shares_memory(one.view, two.view, max_work=work)
    except np.exceptions.TooHardError:
        return False  # nothing is said that isn't certain


def _meet(addresses: np.ndarray, itemsize: int, touch: _Touch) -> bool:
    """Whether an access touches some of the elements at these addresses."""
    others, size = touch.elements, touch.view.itemsize
    if others is None:
        others = _addresses(touch.view, None)
    if size != itemsize:
        addresses, others = _octets(addresses, itemsize), _octets(others, size)
    return bool(np.isin(addresses, others).any())


def _octets(addresses: np.ndarray, itemsize: int) -> np.ndarray:
    return (addresses[:, None] + np.arange(itemsize)).reshape(-1)


def _addresses(view: np.ndarray, numbers: np.ndarray | None) -> np.ndarray:
    """The addresses of the elements of a view with these numbers, or of all, in order."""
    first = view.__array_interface__["data"][0]
    if numbers is None:
        numbers = np.arange(view.size)
    along = np.unravel_index(numbers, view.shape) if view.ndim else ()
    offsets = sum((i * s for i, s in zip(along, view.strides, strict=True)), 0 * numbers)
    return np.sort(first + offsets)


def _changed(view: np.ndarray, before: np.ndarray) -> np.ndarray:
    """The addresses of the elements of a view that aren't what they were, bit for bit."""
    octets = [
        np.frombuffer(np.ascontiguousarray(x).tobytes(), np.uint8).reshape(x.size, -1)
        for x in (view, before)
    ]
    return _addresses(view, np.flatnonzero((octets[0] != octets[1]).any(1)))


def _text(ref: np.ndarray, view: np.ndarray) -> str:
    """The elements as indices of their ref, where these are slices of the ref itself. Else ""."""
    if not isinstance(ref, np.ndarray) or ref.shape == view.shape or not ref.ndim:
        return ""
    offset = view.__array_interface__["data"][0] - ref.__array_interface__["data"][0]
    parts: list[str] = []
    dims = list(zip(view.shape, view.strides, strict=True))
    for size, stride in zip(ref.shape, ref.strides, strict=True):
        at, offset = divmod(offset, stride) if stride > 0 else (0, offset)
        if dims and dims[0][1] == stride and at + dims[0][0] <= size:
            length = dims.pop(0)[0]
            parts.append(f"{at}:{at + length}")
        else:
            parts.append(str(at))
    return "" if dims or offset else f"[{', '.join(parts)}]"


def _access(touch: _Touch) -> Access:
    if touch.copy is not None:
        what = "copies into" if touch.writes else "copies from"
    else:
        what = "writes" if touch.writes else "reads"
    _, number = touch.program if touch.copy is None else touch.copy.program
    name = touch.spot.names[number]
    return Access(what, touch.text, touch.spot.line(), name, touch.cell)


def _words(first: _Touch, second: _Touch) -> tuple[str, str, str]:
    """The rule that a race breaks, what happens, and what to do."""
    kernel = second.spot.kernel
    ref = second.ref or first.ref or "memory"
    one, two = _access(first), _access(second)
    verbs = {"copies into": "a copy into it", "copies from": "a copy from it"}
    message = (
        f"the kernel {kernel} has two accesses to {ref} that nothing orders: {two.program} "
        f"{two.what} it, and {one.program} {one.what} it"
    )
    if first.copy is not None and second.copy is None and first.copy.program == second.program:
        rule = "copy-not-awaited"
        message = (
            f"in the kernel {kernel}, {two.program} {two.what} {ref} while {verbs[one.what]} is "
            "still under way"
        )
        advice = "wait for the copy's semaphore before that"
    elif first.copy is not None or second.copy is not None:
        rule = "copy-unordered"
        advice = (
            "wait for the copy before it, or have the other program signal that the memory is free "
            "before the copy is started"
        )
    else:
        rule = "unordered"
        advice = "have one program signal a semaphore after its access, and the other wait for it"
    return rule, message, advice
