"""Emits the programs of a machine, and the places where they wait for one another.

At lowering, a machine is a list of *levels*, one for each nested group of programs (the devices of
a mesh, the cores of each device). A program has a number at each level. Its memory belongs to the
level at which it is allocated.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pallas_shim import jax_compat
from pallas_shim.evaluator import memory
from pallas_shim.evaluator.machine import order
from pallas_shim.evaluator.machine.clocks import Clocks, Spot
from pallas_shim.evaluator.machine.faults import own_deadlock
from pallas_shim.evaluator.machine.notes import note, note_count
from pallas_shim.evaluator.machine.operations import (
    AWAIT,
    COPY,
    LAND,
    LEFTOVER,
    MEET,
    PASS_BY,
    PROGRAMS,
    REMOTE,
    SIGNAL,
    TURN,
)
from pallas_shim.evaluator.machine.rows import share
from pallas_shim.evaluator.machine.shards import Names, all_coordinates, split
from pallas_shim.evaluator.program import (
    PURE,
    ArrayType,
    Effects,
    Operation,
    Region,
    Type,
    Value,
)

if TYPE_CHECKING:
    from pallas_shim.evaluator.lower import Lowering

NUMBER = ArrayType((), np.dtype(np.int32))


@dataclasses.dataclass(frozen=True)
class Level:
    """One group of programs.

    ``kind``: "device" or "core". ``sizes``: of the axes. ``indices``: the program's index along
    each axis. ``names``: the name of each program at this level. ``number``: the program's own
    position among them. ``missing``: the positions at which there is no program.
    """

    kind: str
    sizes: Mapping[Any, int]
    indices: Mapping[Any, Value]
    number: Value
    names: Sequence[str]
    missing: frozenset[int] = frozenset()


# The axis of the kinds of cores, where functions of several kinds run beside one another.
KIND = "the kind of core"


class Owner(NamedTuple):
    """The cores that memory belongs to, where there are several kinds: the number of their kind,
    and the axes of their mesh."""

    kind: int
    axes: frozenset[Any]


class Machine:
    """The programs around the code that is being lowered, the innermost level last.

    ``talking``: the programs of the kernel that is being lowered wait for one another. ``kernel``
    is the kernel's name, ``where`` the file and line of its definition. ``semaphores`` are those
    allocated inside it. ``numbers`` has the refs of other programs, and the numbers of these.
    ``owners`` has the refs whose owner the user named; ``core`` describes the
    cores that the code is for, if there are several kinds. ``timed``: copies may happen later than
    they start, and programs may run in any order.
    """

    def __init__(self, timed: bool = False) -> None:
        self.timed = timed
        self.levels: list[Level] = []
        self.talking = False
        self.kernel = self.where = ""
        self.semaphores: list[Value] = []
        self.owners: dict[Value, Owner] = {}
        self.numbers: dict[Value, Sequence[Value]] = {}
        self.core: Owner | None = None
        self._meetings = itertools.count()

    def next_meeting(self) -> int:
        return next(self._meetings)

    @property
    def talks(self) -> bool:
        """Whether the code being lowered waits for other programs."""
        return self.talking and bool(self.levels)

    @contextmanager
    def level(self, level: Level) -> Iterator[None]:
        self.levels.append(level)
        try:
            yield
        finally:
            self.levels.pop()

    @contextmanager
    def within(self, kernel: str, where: str, talks: bool) -> Iterator[None]:
        """A context in which a kernel is lowered. ``talks``: its programs wait for one another."""
        outer = self.talking, self.kernel, self.where, self.semaphores
        self.talking, self.kernel, self.where, self.semaphores = talks, kernel, where, []
        try:
            yield
        finally:
            self.talking, self.kernel, self.where, self.semaphores = outer

    def axis(self, name: Any) -> tuple[Value, int] | None:
        """The index and size of a named axis, if programs run along it."""
        for level in reversed(self.levels):
            if name in level.sizes:
                return level.indices[name], level.sizes[name]
        return None

    def sizes(self) -> dict[Any, int]:
        """The axes of all levels, in the order in which programs are numbered at the innermost."""
        return {name: size for level in self.levels for name, size in level.sizes.items()}


def emit_programs(
    lowering: Lowering,
    kind: str,
    sizes: Mapping[Any, int],
    operands: Sequence[Value],
    names_in: Sequence[Names],
    part_types: Sequence[Type],
    out_types: Sequence[Type],
    names_out: Sequence[Names],
    build: Callable[[Sequence[Value]], Sequence[Value]],
    names: Sequence[str | None] | None = None,
) -> tuple[Value, ...]:
    """Emits programs along some axes. ``build`` emits one from its parts of the operands.

    ``names``: what messages call the programs, without one around them. Where it has None, there is
    no program.
    """
    machine: Machine = lowering.machine
    sizes = dict(sizes)
    places = all_coordinates(sizes)
    outer = machine.levels[-1] if machine.levels else None
    own = names or [_name(kind, n, place) for n, place in enumerate(places)]
    absent = frozenset(n for n, name in enumerate(own) if name is None)
    around_each = outer.names if outer else [""]
    all_names = [
        f"{name} of {before}" if before else str(name) for before in around_each for name in own
    ]
    missing = frozenset(at for at in range(len(all_names)) if at % len(places) in absent)

    def program(params: Sequence[Value]) -> Sequence[Value]:
        number, *rest = params
        indices = dict(zip(sizes, rest, strict=False))
        with machine.level(Level(kind, sizes, indices, number, all_names, missing)):
            return build(rest[len(sizes) :])

    region = lowering.region([NUMBER] * (1 + len(sizes)) + list(part_types), program)
    splits = [
        [split(v.type.shape, names, sizes, place) for place in places]
        for v, names in zip(operands, names_in, strict=True)
    ]
    joins = [
        _once([split(t.shape, names, sizes, place) for place in places])
        for t, names in zip(out_types, names_out, strict=True)
    ]
    around = outer.number if outer else lowering.const(np.int32(0))
    params = {
        "kind": kind,
        "count": len(places),
        "coordinates": [tuple(map(np.int32, place.values())) for place in places],
        "names": all_names,
        "missing": absent,
        "names_in": tuple(names_in),
        "names_out": tuple(names_out),
        "splits": splits,
        "joins": joins,
    }
    before = len(lowering.body)
    results = lowering.structured(PROGRAMS, [around, *operands], out_types, [region], params)
    if outer is None:
        lowering.body[before:] = share(lowering, lowering.body[before])
    return results


def _name(kind: str, n: int, place: Mapping[Any, int]) -> str:
    axes = ", ".join(f"{axis}={index}" for axis, index in place.items())
    return f"{kind} {n} ({axes})" if axes else f"{kind} {n}"


def _once(keys: Sequence[tuple[slice, ...]]) -> list[tuple[slice, ...] | None]:
    """The place of each part in the whole. A place that has occurred before becomes None."""
    seen = set()
    once: list[tuple[slice, ...] | None] = []
    for key in keys:
        text = tuple((k.start, k.stop) for k in key)
        once.append(None if text in seen else key)
        seen.add(text)
    return once


# -- programs that wait -------------------------------------------------------------------------


def remote(lowering: Lowering, ref: Value, numbers: Sequence[Value]) -> Value:
    """The same ref in another program, given that program's number at each level."""
    (out,) = lowering.memory(REMOTE, [ref, *numbers], [ref.ref], _unresolved, PURE, view=True)
    if ref in lowering.names:
        lowering.names[out] = lowering.names[ref]
    lowering.machine.numbers[out] = numbers
    return out


def emit_await(
    lowering: Lowering,
    ref: Value,
    path: memory.Path,
    leaves: Sequence[Value],
    count: Value,
    decrement: bool,
) -> None:
    """Emits a wait for a semaphore to reach a count."""
    params = {"path": path, "num_leaves": len(leaves), "decrement": decrement,
              "semaphore": lowering.names.get(ref, "a semaphore")}  # fmt: skip
    lowering.memory(
        AWAIT, [ref, count, *leaves], [], None,
        Effects(reads=(0,), writes=(0,), io=True), params=params,
    )  # fmt: skip

    def taken(clocks: Clocks, program: Any, semaphore: Any, count: int) -> None:
        clocks.take(program, semaphore, count, decrement)

    note_count(lowering, ref, path, leaves, count, taken)


def emit_signal(
    lowering: Lowering, ref: Value, path: memory.Path, leaves: Sequence[Value], count: Value
) -> None:
    """Emits an addition to a semaphore that another program may wait for."""
    view = memory.viewer(ref.type.shape, ref.type.dtype, path)
    num_leaves = len(leaves)

    def signal(ref: Any, value: Any, *leaves: Any) -> Any:
        at = view(ref, *leaves[:num_leaves])
        np.add(at, value, out=at, casting="unsafe")
        return ()

    lowering.memory(
        SIGNAL, [ref, count, *leaves], [], signal,
        Effects(reads=(0,), writes=(0,), io=True), params={"path": path},
    )  # fmt: skip
    note_count(lowering, ref, path, leaves, count, Clocks.add)


def emit_turn(lowering: Lowering) -> None:
    """Lets other programs run first.

    A copy may write to memory that its owner still reads. Under JAX's interpreter the programs run
    at the same pace, so the owner has read it by then.
    """
    lowering.memory(TURN, [], [], None, Effects(io=True))


def emit_meeting(
    lowering: Lowering,
    name: str,
    axes: Sequence[Any],
    brought: Sequence[Value],
    out_types: Sequence[Type],
    combine: Callable[[list[list[Any]]], Sequence[Sequence[Any]]],
    index_groups: Sequence[Sequence[int]] | None = None,
    patient: bool = False,
) -> tuple[Value, ...]:
    """Emits a meeting of all programs along some axes, or of each group of indices along them.

    The last axis is the fastest. ``combine`` gets what each program brought, in order, and returns
    the results of each.
    """
    machine: Machine = lowering.machine
    level, key = machine.levels[-1], machine.next_meeting()
    groups = _groups(machine.sizes(), axes, index_groups, level.missing)
    params = {
        "name": name,
        "key": key,
        "groups": groups,
        "names": level.names,
        "num_brought": len(brought),
        "combine": combine,
        "patient": patient,
    }

    def come(clocks: Clocks, program: Any, spot: Spot) -> None:
        clocks.come(program, (key, groups[program[1]][0]))

    def met(clocks: Clocks, program: Any, spot: Spot) -> None:
        members = groups[program[1]][0]
        clocks.met(program, (key, members), len(members))

    if not patient:  # the ends of a kernel are no meetings on a device
        note(lowering, (), come)
    taken = lowering.memory(
        MEET, [level.number, *brought], out_types, None, Effects(io=True), params=params
    )
    if not patient:
        note(lowering, (), met)
    return taken


def emit_place(lowering: Lowering) -> None:
    """Emits a place where others may run, if the order of programs is free.

    Races between accesses apart, it is enough that these are before each copy, signal and wait.
    """
    if lowering.machine.timed and lowering.machine.talks:
        lowering.memory(PASS_BY, [], [], None, Effects(io=True))


class CopyStep(NamedTuple):
    """A step of a copy that may happen later, and the semaphore to which it adds, if there is
    one."""

    region: Region
    semaphore: Value | None = None
    path: memory.Path = ()
    leaves: Sequence[Value] = ()


def emit_copy(lowering: Lowering, steps: Sequence[CopyStep]) -> None:
    """Emits a copy that may happen later."""
    ins: list[Value] = []
    semaphores: list[Any] = []
    for _, ref, path, leaves in steps:
        semaphores.append(None if ref is None else (path, len(leaves)))
        ins += [] if ref is None else [ref, *leaves]
    count = len(steps)
    note(lowering, (), lambda clocks, program, spot: clocks.start(program, spot, count))
    operation = Operation(
        COPY, {"semaphores": tuple(semaphores)}, tuple(v.type for v in ins), (), None,
        Effects(io=True), multiple=True,
    )  # fmt: skip
    lowering.emit(operation, ins, tuple(region for region, *_ in steps))


def emit_timed_wait(
    lowering: Lowering,
    ref: Value,
    path: memory.Path,
    leaves: Sequence[Value],
    count: Value,
    decrement: bool,
) -> None:
    """Emits a wait for copies that may happen later, where no other program adds to the
    semaphore."""
    view = memory.viewer(ref.type.shape, ref.type.dtype, path)
    kernel, name, source = lowering.machine.kernel, lowering.names.get(ref), lowering.source

    def take(ref: Any, needed: Any, *leaves: Any) -> Any:
        at = view(ref, *leaves)
        address = int(at.__array_interface__["data"][0])
        if not order.current().wait(lambda: int(at[()]), address, int(needed)):
            raise own_deadlock(
                f"the kernel {kernel}", name or "a semaphore", int(at[()]), int(needed),
                jax_compat.user_source(source),
            )  # fmt: skip
        if decrement:
            np.subtract(at, needed, out=at, casting="unsafe")
        return ()

    effects = Effects(reads=(0,), writes=(0,), io=True)
    lowering.memory("semaphore_take", [ref, count, *leaves], [], take, effects)


# -- kernels that talk --------------------------------------------------------------------------


def emit_entry(lowering: Lowering) -> None:
    """Makes all programs start a kernel together.

    A program's memory must be ready before others write to it.
    """
    if _talks(lowering):
        note(lowering, (), lambda clocks, program, spot: clocks.enter(program))
        _emit_together(lowering, "the start of the kernel")


def emit_exit(lowering: Lowering, semaphores: Sequence[Value]) -> None:
    """Makes all programs end a kernel together, and checks that all semaphores are at zero."""
    if _talks(lowering):
        _emit_together(lowering, "the end of the kernel")
    if lowering.machine.timed:
        lowering.memory(LAND, [], [], _land, Effects(io=True))
    if _talks(lowering):
        note(lowering, (), lambda clocks, program, spot: clocks.leave(program))
        _emit_leftover(lowering, semaphores, True)


def _land() -> tuple[()]:
    order.current().land()
    return ()


def emit_scope_exit(lowering: Lowering, semaphores: Sequence[Value]) -> None:
    """Checks that a scope's own semaphores are at zero when a scope inside a kernel ends.

    Semaphores that other programs reach are checked at the end of the kernel.
    """
    if _talks(lowering) and semaphores:
        lowering.machine.semaphores += semaphores
        _emit_leftover(lowering, semaphores, False)


def _talks(lowering: Lowering) -> bool:
    return lowering.machine.talks


def _emit_together(lowering: Lowering, name: str) -> None:
    axes = tuple(lowering.machine.sizes())
    emit_meeting(lowering, name, axes, (), (), lambda brought: brought, patient=True)


def _emit_leftover(lowering: Lowering, semaphores: Sequence[Value], at_end: bool) -> None:
    machine: Machine = lowering.machine
    params = {"kernel": machine.kernel, "where": machine.where, "at_end": at_end,
              "elsewhere": tuple(machine.semaphores)}  # fmt: skip
    lowering.memory(LEFTOVER, semaphores, [], None, Effects(io=True), params=params)


def _groups(
    sizes: dict[Any, int],
    axes: Sequence[Any],
    index_groups: Sequence[Sequence[int]] | None,
    missing: frozenset[int],
) -> list[tuple[tuple[int, ...], int]]:
    """For each program, the numbers of the programs that it meets, and its rank among them. A
    missing one meets nobody."""
    others = [name for name in sizes if name not in axes]
    members: dict[Any, list[int]] = {}
    places = all_coordinates(sizes)
    indices = []
    for place in places:
        index = 0
        for axis in axes:
            index = index * sizes[axis] + place[axis]
        indices.append(index)
    group_of = {index: at for at, group in enumerate(index_groups or ()) for index in group}
    rank_of = {index: rank for group in index_groups or () for rank, index in enumerate(group)}
    keys = []
    for number, place in enumerate(places):
        key = (*[place[name] for name in others], group_of.get(indices[number], 0))
        if number not in missing:
            members.setdefault(key, []).append(number)
        keys.append(key)
    groups = {
        key: tuple(sorted(numbers, key=lambda n: rank_of.get(indices[n], indices[n])))
        for key, numbers in members.items()
    }
    return [
        ((), 0) if number in missing else (groups[key], groups[key].index(number))
        for number, key in enumerate(keys)
    ]


def _unresolved(*_: Any) -> Any:
    raise AssertionError("a ref of another program is resolved where its machine ends")
