"""The body of a group's loops while it is written: the registers and addresses of one element."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np

from pallas_shim.evaluator.codegen.native.places import BufferPlace
from pallas_shim.evaluator.codegen.native.source import Source
from pallas_shim.evaluator.program import Value


@dataclasses.dataclass(eq=False)
class GroupAccess:
    """Elements of a place, for each element of a group. ``strides`` are along the group's
    dimensions. In the dimensions of ``tables`` the table's entry counts instead of the index."""

    place: BufferPlace
    strides: tuple[int, ...]
    tables: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)


class Rounds:
    """What is known of one element while the loops' body is written."""

    def __init__(self, to: Source, group: Any, dims: Sequence[Dim], at: Sequence[str]):
        self.to = self.plain = to  # ``plain`` for what isn't of elements
        self._group, self._dims, self._at = group, dims, at
        self._registers: dict[Value, str] = {}
        self._indices: dict[int, str] = {}

    def value(self, value: Value) -> str:
        """The register of a value of the group."""
        if value not in self._registers:
            self._group.members[value](self)
        return self._registers[value]

    def set(self, value: Value, register: str) -> None:
        self._registers[value] = register

    def index(self, axis: int) -> str:
        """The element's index along a dimension of the group."""
        if axis not in self._indices:
            index = "0"
            for dim, at in zip(self._dims, self._at, strict=True):
                if dim.axis == axis:
                    index = self.plain.plus(index, self.plain.times(at, dim.unit))
            self._indices[axis] = index
        return self._indices[axis]

    def address(self, access: GroupAccess) -> str:
        to, offset = self.plain, access.place.offset
        for dim, at in zip(self._dims, self._at, strict=True):
            offset = to.plus(offset, to.times(at, dim.steps.get(access, 0)))
        first = sum(
            int(table[0]) * access.strides[axis]
            for axis, table in access.tables.items()
            if axis not in self._group.looked_up(access)
        )
        offset = to.plus(offset, str(first))
        for axis in self._group.looked_up(access):
            table = self._group.table(access.tables[axis])
            entry = to.load(np.dtype(np.int64), table, to.times(self.index(axis), 8))
            offset = to.plus(offset, to.times(entry, access.strides[axis]))
        return offset

    def load(self, access: GroupAccess) -> str:
        return self.to.load(access.place.dtype, access.place.buffer.base, self.address(access))

    def store(self, access: GroupAccess, register: str) -> None:
        place = access.place
        self.to.store(place.dtype, register, place.buffer.base, self.address(access))

    def shared(self, register: str, dtype: np.dtype) -> str:
        """A scalar that is the same in all rounds."""
        return register


class Dim(NamedTuple):
    """A loop: ``size`` rounds, each ``unit`` elements further along an axis of the group."""

    axis: int
    unit: int
    size: int
    steps: dict[GroupAccess, int]


def enter_loops(
    to: Source, stack: ExitStack, dims: Sequence[Dim], most: int, independent: str = ""
) -> list[str]:
    """Begins loops inside one another. Up to ``most`` threads share the outermost one, of which no
    round accesses what another one writes. Gives the rounds' numbers."""
    outer = [to.shared_loop(dim.size, most, independent) for dim in dims[:1]]
    inner = [to.loop(str(dim.size), independent) for dim in dims[1:]]
    return [stack.enter_context(loop) for loop in (*outer, *inner)]
