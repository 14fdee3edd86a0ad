"""Groups: elementwise operations of one shape that become one nest of loops.

In the loops every value is a register. Only what is used after them is written to memory. No round
of them accesses what another one writes.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np

from pallas_shim.evaluator.codegen.native import stages
from pallas_shim.evaluator.codegen.native.places import Buffer, BufferPlace, Workspace, broadcast
from pallas_shim.evaluator.codegen.native.rounds import Dim, GroupAccess, Rounds, enter_loops
from pallas_shim.evaluator.codegen.native.source import Source
from pallas_shim.evaluator.codegen.native.stages import LoopCall, Reduction
from pallas_shim.evaluator.codegen.native.threads import worthwhile
from pallas_shim.evaluator.codegen.native.vectors import Vectors
from pallas_shim.evaluator.program import Value

# An innermost loop of fewer rounds is written out.
_WRITTEN_OUT = 8


class _VectorRounds(Rounds):
    """The same of several elements at once. ``lanes``: for each access where its elements lie, in
    bytes from the first one's."""

    to: Vectors

    def __init__(
        self, to: Source, group: Group, dims: Sequence[Dim], at: Sequence[str],
        lanes: dict[GroupAccess, np.ndarray],
    ):  # fmt: skip
        self._lanes = lanes
        super().__init__(to, group, dims, at)
        self.to = Vectors(to, len(next(iter(lanes.values()))))

    def load(self, access: GroupAccess) -> str:
        dtype, base, offset, order = self._vector(access)
        return self.to.load_lanes(dtype, base, offset, order)

    def store(self, access: GroupAccess, register: str) -> None:
        dtype, base, offset, order = self._vector(access)
        assert order is not None
        self.to.store_lanes(dtype, register, base, offset, order)

    def shared(self, register: str, dtype: np.dtype) -> str:
        return self.to.splat(register, dtype)

    def _vector(self, access: GroupAccess) -> tuple[np.dtype, str, str, list[int] | None]:
        place, offsets = access.place, self._lanes[access]
        first = int(offsets.min())
        offset = self.plain.plus(self.address(access), str(first))
        order = None if not offsets.any() else ((offsets - first) // place.dtype.itemsize).tolist()
        return place.dtype, place.buffer.base, offset, order


class Group:
    """Elementwise operations of one shape, not yet written."""

    def __init__(self, shape: tuple[int, ...], table: Callable[[np.ndarray], str]):
        self.shape = shape
        self.table = table  # gives the address of a table
        self.members: dict[Value, Callable[[Rounds], None]] = {}
        self.needs: dict[Value, Sequence[Value]] = {}  # members that a member is made of
        self.loads: set[Value] = set()  # members that are read from memory
        self.loops: dict[Value, LoopCall] = {}  # members that NumPy's loops compute
        self.reductions: dict[Value, Reduction] = {}
        self.functions = 0  # members that take long to compute
        self.rows: set[Value] = set()  # members with one element for each row
        self.uses: Counter[Value] = Counter()
        self.stores: list[tuple[GroupAccess, Value]] = []
        self.row_stores: list[tuple[GroupAccess, Value]] = []
        self.reads: list[GroupAccess] = []
        self.also_read: set[Buffer] = set()
        self.indexed: set[int] = set()  # the axes of which some member asks for the index
        self._looked_up: dict[GroupAccess, tuple[int, ...]] = {}

    def reads_buffer(self, buffer: Buffer) -> bool:
        return buffer in self.also_read or any(a.place.buffer is buffer for a in self.reads)

    def writes_buffer(self, buffer: Buffer) -> bool:
        return any(access.place.buffer is buffer for access, _ in self.stores)

    def add(self, value: Value, needs: Iterable[Value], write: Callable[[Rounds], None]) -> None:
        """A member, which ``write`` computes from other values, members or not."""
        self.members[value] = write
        self.needs[value] = [need for need in needs if need in self.members]

    def can_store(self, place: BufferPlace) -> bool:
        """Whether a store here, for all elements, disturbs no other round."""
        if place.buffer in self.also_read or self.writes_buffer(place.buffer):
            return False
        return all(
            access.place == place and not access.tables and access.strides == place.strides
            for access in self.reads
            if access.place.buffer is place.buffer
        )

    def access(
        self, place: BufferPlace, tables: dict[int, np.ndarray] | None = None
    ) -> GroupAccess:
        access = GroupAccess(place, broadcast(place.strides, place.shape, self.shape), tables or {})
        self.reads.append(access)
        return access

    def target(self, place: BufferPlace) -> GroupAccess:
        return GroupAccess(place, broadcast(place.strides, place.shape, self.shape))

    def row_target(self, place: BufferPlace) -> GroupAccess:
        """Elements of a place with one for each row."""
        strides = place.strides[: len(self.shape) - 1]
        return GroupAccess(place, (*strides, 0))

    def is_of_rows(self, shape: tuple[int, ...]) -> bool:
        """Whether a shape has an element for each row."""
        return shape in (self.shape[:-1], (*self.shape[:-1], 1))

    def looked_up(self, access: GroupAccess) -> tuple[int, ...]:
        """The axes along which the tables of an access aren't steps of loops."""
        return self._looked_up.get(access, ())

    def write(self, to: Source, workspace: Workspace) -> None:
        """Writes the loops."""
        if math.prod(self.shape) == 0 or not (self.stores or self.row_stores):
            return  # nothing uses what it computes
        dims = self._dims()
        if self.loops or self.reductions:
            stages.write(to, workspace, self, dims, self._threads())
            return
        most = self._threads()
        vectors = self._vectors(dims)
        if vectors is not None:
            outer, lanes = vectors
            with ExitStack() as stack:
                at = enter_loops(to, stack, outer, most)
                self._body(_VectorRounds(to, self, outer, at, lanes))
            return
        inner = dims.pop() if dims and dims[-1].size < _WRITTEN_OUT else None
        with ExitStack() as stack:
            parallel = stack.enter_context(to.independent_rounds())
            at = enter_loops(to, stack, dims, most, parallel)
            if inner is None:
                self._body(Rounds(to, self, dims, at))
                return
            for number in range(inner.size):
                self._body(Rounds(to, self, [*dims, inner], [*at, str(number)]))

    def _threads(self) -> int:
        """How many threads pay."""
        accesses = len(self.reads) + len(self.stores)
        functions = self.functions + len(self.loops)
        operations = len(self.members) - functions
        return worthwhile(math.prod(self.shape), accesses, operations, functions)

    def _body(self, rounds: Rounds) -> None:
        for value in self.members:
            rounds.value(value)
        for access, value in self.stores:
            rounds.store(access, rounds.value(value))

    def _vectors(
        self, dims: Sequence[Dim]
    ) -> tuple[list[Dim], dict[GroupAccess, np.ndarray]] | None:
        """The outer loops, and where the elements lie that one vector takes, if neighbours are
        exchanged. Otherwise LLVM makes the vectors."""
        if not dims or dims[-1].size >= _LANES[0] or self.also_read or self.indexed:
            return None
        accesses = [*self.reads, *[access for access, _ in self.stores]]
        if any(map(self.looked_up, accesses)):
            return None
        for count in _LANES:
            split = _split(dims, count)
            if split is None:
                continue
            outer, inner = split
            lanes = {}
            for access in accesses:
                offsets = np.zeros(1, np.int64)
                for dim in inner:
                    steps = np.arange(dim.size) * dim.steps[access]
                    offsets = (offsets[:, None] + steps).reshape(-1)
                lanes[access] = offsets
            if all(_are_neighbours(access, lanes[access]) for access in self.reads) and all(
                lanes[access].any() and _are_neighbours(access, lanes[access])
                for access, _ in self.stores
            ):
                return outer, lanes
        return None

    def _dims(self) -> list[Dim]:
        accesses = [*self.reads, *[access for access, _ in (*self.stores, *self.row_stores)]]
        dims = []
        for axis, size in enumerate(self.shape):
            bounds = {1, size}
            for access in accesses:
                table = access.tables.get(axis)
                if table is not None:
                    own = _bounds(table)
                    joined = sorted(bounds | (own or set()))
                    if own is None or any(b % a for a, b in itertools.pairwise(joined)):
                        known = self._looked_up.get(access, ())
                        self._looked_up[access] = (*known, axis)
                    else:
                        bounds |= own
            for unit, further in reversed(list(itertools.pairwise(sorted(bounds)))):
                steps = {}
                for access in accesses:
                    table, stride = access.tables.get(axis), access.strides[axis]
                    if table is None:
                        steps[access] = unit * stride
                    elif axis not in self.looked_up(access):
                        steps[access] = int(table[unit] - table[0]) * stride
                dims.append(Dim(axis, unit, further // unit, steps))
        return self._merged(dims, accesses)

    def _merged(self, dims: list[Dim], accesses: Sequence[GroupAccess]) -> list[Dim]:
        """Loops that go on where the next inner one ends are one."""
        fixed = {axis for access in accesses for axis in self.looked_up(access)}
        fixed |= self.indexed
        if self.rows:
            fixed.add(len(self.shape) - 1)
        merged: list[Dim] = []
        for dim in dims:
            outer = merged[-1] if merged else None
            if (
                outer is not None
                and outer.axis not in fixed
                and dim.axis not in fixed
                and all(outer.steps[a] == dim.steps[a] * dim.size for a in accesses)
            ):
                merged[-1] = Dim(dim.axis, dim.unit, outer.size * dim.size, dim.steps)
            else:
                merged.append(dim)
        return merged



# How many elements a vector may have.
_LANES = (16, 8)


def _split(dims: Sequence[Dim], count: int) -> tuple[list[Dim], list[Dim]] | None:
    """Loops cut into outer ones and inner ones with so many rounds. None: they can't be."""
    outer, inner = list(dims), list[Dim]()
    while count > 1:
        if not outer:
            return None
        dim = outer.pop()
        size = math.gcd(dim.size, count)
        if size < dim.size and size < count:
            return None
        count //= size
        inner.insert(0, dim._replace(size=size))
        if size < dim.size:
            further = {access: step * size for access, step in dim.steps.items()}
            outer.append(dim._replace(unit=dim.unit * size, size=dim.size // size, steps=further))
    return outer, inner


def _are_neighbours(access: GroupAccess, offsets: np.ndarray) -> bool:
    """Whether elements are all the same one, or neighbours in some order."""
    if not offsets.any():
        return True
    size = access.place.dtype.itemsize
    return bool((np.sort(offsets) - offsets.min() == np.arange(len(offsets)) * size).all())


def _bounds(table: np.ndarray) -> set[int] | None:
    """How a table is made of even steps inside one another: the lengths of the runs, of the runs of
    runs, and so on. None if it isn't."""
    found, unit = set(), 1
    while len(table) > 1:
        run = next((n for n in _divisors(len(table)) if _is_even(table.reshape(-1, n))), None)
        if run is None:
            return None
        unit *= run
        found.add(unit)
        table = table[::run]
    return found


def _divisors(number: int) -> Iterator[int]:
    """From the greatest down to 2."""
    return (n for n in range(number, 1, -1) if number % n == 0)


def _is_even(rows: np.ndarray) -> bool:
    """Whether all rows go on by the same steps."""
    step = rows[0, 1] - rows[0, 0]
    return bool((rows - rows[:, :1] == step * np.arange(rows.shape[1])).all())


@contextmanager
def nest(to: Source, sizes: Sequence[int]) -> Iterator[list[str]]:
    """Loops inside one another, and their indices."""
    with ExitStack() as stack:
        yield [stack.enter_context(to.loop(str(size))) for size in sizes]
