"""Watches a kernel run: the values of its instructions, who wrote what, and where to stop."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pallas_shim import jax_compat
from pallas_shim.debugger.names import Names, Snapshots, TracedLocal
from pallas_shim.evaluator.program import Instruction, Region, Value
from pallas_shim.evaluator.watching import Cell, Kernel, Parts, Watch, address
from pallas_shim.jax_compat.jaxprs import Frame


class NoValue(LookupError):
    """A name has no value where the run stands. The text says why."""


class Writer(NamedTuple):
    """A write to memory: where, in which cell of which program."""

    where: Frame | None
    what: str
    cell: tuple[int, ...]
    program: str

    def __str__(self) -> str:
        place = "?" if self.where is None else f"{self.where.file}:{self.where.line}"
        on = f" of {self.program}" if self.program else ""
        return f"{place} ({self.what}), in cell {self.cell}{on}"


class Position(NamedTuple):
    """Where a run stands: before an instruction, in a cell. ``frames`` are the user's, the
    innermost first."""

    instruction: Instruction
    program: int
    cell: Cell
    frames: tuple[Frame, ...]

    @property
    def frame(self) -> Frame:
        return self.frames[0]

    @property
    def program_name(self) -> str:
        names = self.cell.kernel.programs
        return names[self.program] if self.program < len(names) else ""


class _Shadow(NamedTuple):
    """For each element of some memory, the number of its last writer."""

    low: int
    high: int
    array: np.ndarray
    writers: np.ndarray


class _Watched(NamedTuple):
    text: str
    part: np.ndarray
    before: np.ndarray


class Stepper(Watch):
    """Watches the kernels of one function.

    ``stop`` is called before each instruction at which a new line of the user's begins, and may
    talk with the user. It is told whether a cell begins. ``changed`` is called after a write to
    memory that is watched. ``asked``: the kernel ran into a breakpoint of its own. ``lines`` are
    the files and lines that have instructions.
    """

    enters = True

    def __init__(
        self,
        snapshots: Snapshots,
        stop: Callable[[Stepper, Position, bool], None],
        changed: Callable[[Stepper, Position, str], None],
    ) -> None:
        self._snapshots = snapshots
        self._stop, self._changed = stop, changed
        self.asked = False
        self.lines: set[tuple[str, int]] = set()
        self._values: dict[int, dict[Value, Any]] = {}
        self._scopes: list[Mapping[Any, Value]] = []
        self._scopes_of: dict[Any, list[int]] = {}
        self._inside: dict[int, tuple[Region, tuple[Value, ...]]] = {}
        self._cells: dict[int, Cell] = {}
        self._fresh: set[int] = set()
        self._places: dict[int, tuple[Instruction, tuple[Frame, ...]]] = {}
        self._last: dict[int, tuple[Frame, int, int | None]] = {}
        self._here: dict[int, Position] = {}
        self._parts = Parts()
        self._shadows: dict[int, _Shadow] = {}
        self._writers: list[Writer] = []
        self._watched: dict[int, _Watched] = {}

    # -- what the run tells -------------------------------------------------------------------

    def bound(self, values: Mapping[Any, Value], body: Sequence[Instruction]) -> None:
        number = len(self._scopes)
        self._scopes.append(dict(values))
        for instruction in Region((), tuple(body), ()).walk():
            scopes = self._scopes_of.setdefault(_key(instruction), [])
            if scopes[-1:] != [number]:
                scopes.append(number)

    def entered(self, region: Region, program: int, values: Sequence[Any]) -> None:
        # What an earlier round has computed isn't computed yet in this one.
        known = self._values.setdefault(program, {})
        for value in self._made_inside(region):
            known.pop(value, None)
        if region.params:  # a loop goes round: its first line is to be stopped at again
            self._last.pop(program, None)
        self._note(program, region.params, values)

    def _made_inside(self, region: Region) -> tuple[Value, ...]:
        found = self._inside.get(id(region))
        if found is None:
            made = tuple(out for instruction in region.walk() for out in instruction.outs)
            found = self._inside[id(region)] = (region, made)
        return found[1]

    def cell_ended(self, program: int) -> None:
        self._cells.pop(program, None)

    def cell(self, cell: Cell) -> None:
        self._cells[cell.program] = cell
        self._fresh.add(cell.program)
        self._last.pop(cell.program, None)
        for array in (*cell.refs, *cell.buffers):
            self._cover(array)

    def left(self, kernel: Kernel, program: int, buffers: Sequence[np.ndarray]) -> None:
        for number, cell in list(self._cells.items()):
            if cell.kernel is kernel:
                del self._cells[number]

    def wants(self, instruction: Instruction) -> Collection[str]:
        frames = self._frames(instruction)
        if frames:
            self.lines.add((os.path.abspath(frames[0].file), frames[0].line))
        return ("before", "after") if frames else ("after",)

    def before(self, instruction: Instruction, program: int, ins: Sequence[Any]) -> None:
        cell = self._cells.get(program)
        if cell is None:
            return
        frames = self._frames(instruction)
        if not frames:
            return
        frame = frames[0]
        scopes = self._scopes_of.get(_key(instruction), ())
        here = frame, len(frames), scopes[0] if scopes else None
        is_new = self._last.get(program) != here
        self._last[program] = here
        place = self._here[program] = Position(instruction, program, cell, frames)
        if is_new or self.asked:
            starts = program in self._fresh
            self._fresh.discard(program)
            self._stop(self, place, starts)

    def after(
        self, instruction: Instruction, program: int, ins: Sequence[Any], outs: Sequence[Any]
    ) -> None:
        self._note(program, instruction.outs, outs)
        effects = instruction.operation.effects
        if effects.allocates and outs and isinstance(outs[0], np.ndarray):
            self._cover(outs[0])
        cell = self._cells.get(program)
        if cell is None:
            return
        for position in effects.writes:
            if isinstance(ins[position], np.ndarray):
                part = self._parts.part(instruction, position, ins)
                self._wrote(instruction, program, cell, part)

    def _note(self, program: int, values: Sequence[Value], arrays: Sequence[Any]) -> None:
        self._values.setdefault(program, {}).update(zip(values, arrays, strict=True))

    def _frames(self, instruction: Instruction) -> tuple[Frame, ...]:
        known = self._places.get(id(instruction))
        if known is None:
            frames = jax_compat.user_frames(instruction.source)
            known = self._places[id(instruction)] = (instruction, frames)
        return known[1]

    # -- values -------------------------------------------------------------------------------

    def names(self, place: Position, frame: Frame) -> dict[str, Any]:
        """The user's local variables of a frame with their values. Refs are the memory itself."""
        choices = self._snapshots.at(frame)
        for snapshot in reversed(choices):
            found = self._resolved(place, snapshot)
            if found is not None:
                return found
        found = {}
        for snapshot in choices:  # some of it isn't computed yet
            for name, value in snapshot.items():
                try:
                    found[name] = self._value(place, value)
                except NoValue:
                    continue
        return found

    def refs(self, place: Position) -> dict[str, np.ndarray]:
        """The kernel's refs, by the names of its parameters."""
        kernel = place.cell.kernel
        return {kernel.name(n): ref for n, ref in enumerate(place.cell.refs)}

    def _resolved(self, place: Position, names: Names) -> dict[str, Any] | None:
        try:
            return {name: self._value(place, value) for name, value in names.items()}
        except NoValue:
            return None

    def _value(self, place: Position, shown: Any) -> Any:
        if isinstance(shown, TracedLocal):
            value = self._value_of(place, shown.variable)
            if value.const is not None:
                return value.const
            known = self._values.get(place.program, {})
            if value not in known:
                raise NoValue("it isn't computed yet")
            return known[value]
        if isinstance(shown, (tuple, list)):
            return type(shown)(self._value(place, part) for part in shown)
        return shown

    def _value_of(self, place: Position, variable: Any) -> Value:
        """What a variable of a jaxpr is here: a jaxpr that is called twice has two values for it.

        The scopes of an instruction are those of the calls around it, the innermost first.
        """
        for number in self._scopes_of.get(_key(place.instruction), ()):
            if variable in self._scopes[number]:
                return self._scopes[number][variable]
        others = [scope[variable] for scope in self._scopes if variable in scope]
        if len(set(others)) != 1:
            raise NoValue("it isn't known which call it belongs to")
        return others[0]

    # -- memory -------------------------------------------------------------------------------

    def _cover(self, array: np.ndarray) -> None:
        """Makes a shadow of some memory, unless there is one."""
        base = array
        while isinstance(base.base, np.ndarray):
            base = base.base
        if not base.flags.c_contiguous or not base.size:
            return
        low = address(base)
        known = self._shadows.get(low)
        if known is None or known.array is not base:
            writers = np.zeros(base.size, np.int32)
            self._shadows[low] = _Shadow(low, low + base.nbytes, base, writers)

    def _shadow(self, part: np.ndarray) -> np.ndarray | None:
        """The numbers of the last writers of a part of some memory, as a view."""
        base = part
        while isinstance(base.base, np.ndarray):
            base = base.base
        shadow = self._shadows.get(address(base))
        if shadow is None or part.itemsize != shadow.array.itemsize:
            return None
        size = part.itemsize
        first = (address(part) - shadow.low) // size
        strides = [stride // size * 4 for stride in part.strides]
        return np.lib.stride_tricks.as_strided(shadow.writers[first:], part.shape, strides)

    def _wrote(self, instruction: Instruction, program: int, cell: Cell, part: np.ndarray) -> None:
        frames = self._frames(instruction)
        place = Position(instruction, program, cell, frames or (Frame("?", "?", 0),))
        self._writers.append(Writer(
            frames[0] if frames else None, instruction.name, cell.indices, place.program_name
        ))  # fmt: skip
        shadow = self._shadow(part)
        if shadow is not None:
            shadow[...] = len(self._writers)
        for number, watched in list(self._watched.items()):
            if not np.may_share_memory(part, watched.part):
                continue
            if not _same(watched.before, watched.part):
                text = _change(watched.text, watched.before, watched.part)
                self._watched[number] = watched._replace(before=watched.part.copy())
                self._changed(self, place, f"{text}\n  by {self._writers[-1]}")

    def writers(self, part: np.ndarray) -> Iterator[tuple[tuple[int, ...], Writer | None]]:
        """The last writer of each element of a part of memory, with the first element that it
        wrote. None: nothing has written it in the kernels seen."""
        shadow = self._shadow(part)
        if shadow is None:
            raise NoValue("it isn't memory of the kernel")
        numbers, firsts = np.unique(shadow, return_index=True)
        for number, first in zip(numbers.tolist(), firsts.tolist(), strict=True):
            index = tuple(map(int, np.unravel_index(first, part.shape)))
            yield index, self._writers[number - 1] if number else None

    def watch(self, number: int, text: str, part: np.ndarray) -> None:
        """Has `changed` called when a part of memory changes."""
        if self._shadow(part) is None:
            raise NoValue("it isn't memory of the kernel; give a ref, or some of its elements")
        self._watched[number] = _Watched(text, part, part.copy())

    def unwatch(self, number: int) -> bool:
        return self._watched.pop(number, None) is not None

    def watched(self) -> dict[int, str]:
        return {number: watched.text for number, watched in self._watched.items()}


def _key(instruction: Instruction) -> Any:
    return (instruction.operation, instruction.ins, instruction.outs)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.tobytes() == b.tobytes()


def _change(text: str, before: np.ndarray, after: np.ndarray) -> str:
    if after.size == 1:
        return f"{text} changed from {before.reshape(())[()]} to {after.reshape(())[()]}"
    equal = before == after
    changed = np.argwhere(~(equal | ((before != before) & (after != after))))
    if not len(changed):
        return f"{text} changed in the bits only"
    at = tuple(map(int, changed[0]))
    return (
        f"{text}: {len(changed)} of {after.size} elements changed, the first one "
        f"{list(at)} from {before[at]} to {after[at]}"
    )
