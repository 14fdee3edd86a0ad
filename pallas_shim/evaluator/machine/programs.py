"""Emits what runs as programs of a machine, and where they wait for one another.

What a machine is, at lowering: *levels*, one for each group of programs inside one another (the
devices of a mesh, the cores of each). A program has a number at each level; its memory belongs to
the level at which it is allocated.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from pallas_shim.evaluator import memory
from pallas_shim.evaluator.machine.operations import (
    AWAIT,
    LEFTOVER,
    MEET,
    PROGRAMS,
    REMOTE,
    SIGNAL,
    TURN,
)
from pallas_shim.evaluator.machine.rows import share
from pallas_shim.evaluator.machine.shards import Names, all_coordinates, split
from pallas_shim.evaluator.program import PURE, ArrayType, Effects, Type, Value

if TYPE_CHECKING:
    from pallas_shim.evaluator.lower import Lowering

NUMBER = ArrayType((), np.dtype(np.int32))


@dataclasses.dataclass(frozen=True)
class Level:
    """One group of programs.

    ``kind``: "device" or "core". ``sizes`` of the axes and ``indices`` along them. ``number`` is
    the program's own among the ``names``, one for each at this level.
    """

    kind: str
    sizes: Mapping[Any, int]
    indices: Mapping[Any, Value]
    number: Value
    names: Sequence[str]


class Machine:
    """What is known of the programs around what is being lowered; the innermost level last.

    ``talking``: the kernel that is being lowered has programs that wait for one another.
    ``kernel`` is its name, ``where`` the file and line that it is defined at, ``semaphores`` those
    made somewhere inside it.
    """

    def __init__(self) -> None:
        self.levels: list[Level] = []
        self.talking = False
        self.kernel = self.where = ""
        self.semaphores: list[Value] = []
        self._meetings = itertools.count()

    def next_meeting(self) -> int:
        return next(self._meetings)

    @property
    def talks(self) -> bool:
        """Whether what is being lowered waits for other programs."""
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
        """Lowers a kernel of that name, whose programs wait for one another or don't."""
        outer = self.talking, self.kernel, self.where, self.semaphores
        self.talking, self.kernel, self.where, self.semaphores = talks, kernel, where, []
        try:
            yield
        finally:
            self.talking, self.kernel, self.where, self.semaphores = outer

    def axis(self, name: Any) -> tuple[Value, int] | None:
        """The index and size of the axis of a name, if programs run along it."""
        for level in reversed(self.levels):
            if name in level.sizes:
                return level.indices[name], level.sizes[name]
        return None

    def sizes(self) -> dict[Any, int]:
        """The axes of all levels, in the order of the programs' numbers at the innermost."""
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
) -> tuple[Value, ...]:
    """Emits programs along some axes; ``build`` emits one from its parts of the operands."""
    machine: Machine = lowering.machine
    sizes = dict(sizes)
    places = all_coordinates(sizes)
    outer = machine.levels[-1] if machine.levels else None
    names = [
        _name(kind, sizes, n, place, before)
        for before in (outer.names if outer else [""])
        for n, place in enumerate(places)
    ]

    def program(params: Sequence[Value]) -> Sequence[Value]:
        number, *rest = params
        indices = dict(zip(sizes, rest, strict=False))
        with machine.level(Level(kind, sizes, indices, number, names)):
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
        "names": names,
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


def _name(
    kind: str, sizes: Mapping[Any, int], n: int, place: Mapping[Any, int], around: str
) -> str:
    axes = ", ".join(f"{axis}={index}" for axis, index in place.items())
    own = f"{kind} {n} ({axes})" if axes else f"{kind} {n}"
    return f"{own} of {around}" if around else own


def _once(keys: Sequence[tuple[slice, ...]]) -> list[tuple[slice, ...] | None]:
    """The places of parts in the whole, of each but the first time."""
    seen = set()
    once: list[tuple[slice, ...] | None] = []
    for key in keys:
        text = tuple((k.start, k.stop) for k in key)
        once.append(None if text in seen else key)
        seen.add(text)
    return once


# -- programs that wait -------------------------------------------------------------------------


def remote(lowering: Lowering, ref: Value, numbers: Sequence[Value]) -> Value:
    """The same ref of another program, given that program's number at each level."""
    (out,) = lowering.memory(REMOTE, [ref, *numbers], [ref.ref], _unresolved, PURE, view=True)
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


def emit_turn(lowering: Lowering) -> None:
    """Lets other programs run first: what a copy writes to, its owner has used before if it runs
    at the same pace, as under JAX's interpreter."""
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
    """Emits a meeting of all programs along some axes, the last the fastest, or of those of each
    group of indices along them.

    ``combine`` gets what each brought, in their order, and returns what each takes away.
    """
    machine: Machine = lowering.machine
    level = machine.levels[-1]
    params = {
        "name": name,
        "key": machine.next_meeting(),
        "groups": _groups(machine.sizes(), axes, index_groups),
        "names": level.names,
        "num_brought": len(brought),
        "combine": combine,
        "patient": patient,
    }
    return lowering.memory(
        MEET, [level.number, *brought], out_types, None, Effects(io=True), params=params
    )


# -- kernels that talk --------------------------------------------------------------------------


def emit_entry(lowering: Lowering) -> None:
    """All programs start a kernel together: none is written to by others before it has made its
    memory ready."""
    if _talks(lowering):
        _emit_together(lowering, "the start of the kernel")


def emit_exit(lowering: Lowering, semaphores: Sequence[Value]) -> None:
    """And they end it together, with all semaphores at zero."""
    if _talks(lowering):
        _emit_together(lowering, "the end of the kernel")
        _emit_leftover(lowering, semaphores, True)


def emit_scope_exit(lowering: Lowering, semaphores: Sequence[Value]) -> None:
    """Semaphores of a scope inside a kernel go: those of the program alone have to be zero."""
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
    sizes: dict[Any, int], axes: Sequence[Any], index_groups: Sequence[Sequence[int]] | None
) -> list[tuple[tuple[int, ...], int]]:
    """For each program the numbers of those it meets, and its rank among them."""
    others = [name for name in sizes if name not in axes]
    members: dict[Any, list[int]] = {}
    places = all_coordinates(sizes)
    indices = []
    for place in places:
        index = 0
        for axis in axes:
            index = index * sizes[axis] + place[axis]
        indices.append(index)
    group_of = {
        index: at for at, group in enumerate(index_groups or ()) for index in group
    }
    rank_of = {index: rank for group in index_groups or () for rank, index in enumerate(group)}
    keys = []
    for number, place in enumerate(places):
        key = (*[place[name] for name in others], group_of.get(indices[number], 0))
        members.setdefault(key, []).append(number)
        keys.append(key)
    groups = {
        key: tuple(sorted(numbers, key=lambda n: rank_of.get(indices[n], indices[n])))
        for key, numbers in members.items()
    }
    return [(groups[key], groups[key].index(number)) for number, key in enumerate(keys)]


def _unresolved(*_: Any) -> Any:
    raise AssertionError("a ref of another program is resolved where its machine ends")
