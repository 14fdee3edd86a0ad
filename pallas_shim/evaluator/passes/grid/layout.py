"""Layout: which cells of a grid run together, and where the values of each lie in stacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pallas_shim.evaluator.analysis.cell_tables import Table
from pallas_shim.evaluator.analysis.dependence import Span
from pallas_shim.evaluator.batching_rules import LeadingAxes
from pallas_shim.evaluator.program import Value


class Evenly(NamedTuple):
    """Parts of an array that lie evenly. ``starts``: for each of its dimensions where the
    first lies, a table over the steps ``at``. ``steps``: for each axis of ``lead`` how far it
    goes along each dimension; none if all are the same part."""

    at: list[Value]
    starts: tuple[Table, ...]
    steps: tuple[tuple[int, ...], ...]
    lead: LeadingAxes


class Layout:
    """Along each axis of the grid a range of cells in chunks, which run one after the other
    while the cells of a chunk run at once.

    ``axes`` are those with chunks of several cells, ``sizes`` these chunks', and ``lead`` too,
    which is None if there are no such axes.
    ``params`` are the numbers of the chunks, None for an axis that has only one.
    """

    def __init__(
        self, indices: Sequence[Value], ranges: Sequence[tuple[int, int]], chunks: Sequence[int]
    ):
        self._indices = indices
        self.ranges = ranges
        self.chunks = chunks
        self.steps = [(b - a) // c for (a, b), c in zip(ranges, chunks, strict=True)]
        self.rank = len(chunks)
        self.axes = tuple([axis for axis, size in enumerate(chunks) if size > 1])
        self.sizes = tuple([chunks[axis] for axis in self.axes])
        self.lead: LeadingAxes = self.sizes or None
        self.params = [
            Value(index.type) if n > 1 else None
            for index, n in zip(indices, self.steps, strict=True)
        ]
        self._axis_of = {index: axis for axis, index in enumerate(indices)}

    def at(self, cell: Mapping[int, int]) -> Layout:
        """The part of this layout at these indices along axes without chunks. The other axes
        have the same ``params``."""
        ranges = [
            (cell[axis], cell[axis] + 1) if axis in cell else reach
            for axis, reach in enumerate(self.ranges)
        ]
        part = Layout(self._indices, ranges, self.chunks)
        part.params = [None if a in cell else param for a, param in enumerate(self.params)]
        return part

    def step_of(self, value: Value) -> Value | None:
        """The number of the chunk, if the value is one."""
        axis = self._axis_of.get(value)
        if axis is None or self.chunks[axis] > 1 or self.ranges[axis][0]:
            return None
        return self.params[axis]

    def differing(self, lead: Sequence[int]) -> list[int]:
        """The axes of the grid along which a stack's members differ."""
        return [axis for axis, size in zip(self.axes, lead, strict=True) if size > 1]

    def split(self, table: Table) -> tuple[list[Value], Table, LeadingAxes]:
        """The steps that a table depends on, and itself by these and the axes of the lead,
        which is None if it is 1 all along."""
        parts = self._parts(table)
        used = [axis for axis in range(self.rank) if parts.shape[axis] > 1]
        inner = parts.shape[self.rank :]
        lead = tuple([inner[axis] for axis in self.axes])
        outer = tuple([parts.shape[axis] for axis in used])
        rest = np.ascontiguousarray(parts).reshape(outer + lead)
        rest.flags.writeable = False
        return self._values(used), rest, None if all(size == 1 for size in lead) else lead

    def evenly(self, spans: Sequence[Span]) -> Evenly | None:
        """The layout of the parts of an array that spans take, None if it isn't known to be
        even."""
        bases: list[Table] = []
        distances: list[list[int]] = []
        for span in spans:
            if span.start is None or not span.exact:
                return None
            parts = self._parts(span.start)
            base = parts[(slice(None),) * self.rank + (slice(1),) * self.rank]
            expected = base
            along: list[int] = []
            for axis in self.axes:
                inner = self.rank + axis
                size = parts.shape[inner]
                line = np.arange(size).reshape([-1 if d == inner else 1 for d in range(parts.ndim)])
                step = 0
                if size > 1:
                    at = [0] * parts.ndim
                    at[inner] = 1
                    step = int(parts[tuple(at)]) - int(base.flat[0])
                along.append(step)
                expected = expected + line * step
            if not np.array_equal(expected, parts):
                return None
            bases.append(base.reshape(base.shape[: self.rank]))
            distances.append(along)
        shape = np.broadcast_shapes((1,) * self.rank, *[base.shape for base in bases])
        used = [axis for axis in range(self.rank) if shape[axis] > 1]
        outer = tuple([shape[axis] for axis in used])
        starts = tuple([np.broadcast_to(base, shape).reshape(outer) for base in bases])
        moves = list(zip(*distances, strict=True)) if distances else [()] * len(self.axes)
        lead = tuple(
            [size if any(step) else 1 for size, step in zip(self.sizes, moves, strict=True)]
        )
        if all(size == 1 for size in lead):
            return Evenly(self._values(used), starts, (), None)
        return Evenly(self._values(used), starts, tuple(moves), lead)

    def _parts(self, table: Table) -> Table:
        """A table with, for each axis, first its chunk and then its cell in the chunk."""
        at: list[slice] = []
        shape: list[int] = []
        for axis, size in enumerate(table.shape):
            if size == 1:
                at.append(slice(None))
                shape += (1, 1)
            else:
                at.append(slice(*self.ranges[axis]))
                shape += (self.steps[axis], self.chunks[axis])
        order = (*range(0, 2 * self.rank, 2), *range(1, 2 * self.rank, 2))
        return table[tuple(at)].reshape(shape).transpose(order)

    def _values(self, axes: Sequence[int]) -> list[Value]:
        values = [self.params[axis] for axis in axes]
        return [value for value in values if value is not None]
