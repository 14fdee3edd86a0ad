"""Dependence: where the cells of a grid touch memory, and the proof that they don't meet.

A *box* bounds the part of a buffer that a ref or an access covers. Along each dimension of the
buffer it has a start, which may be a table over the cells, and a length. Missing knowledge makes a
box larger, never smaller: an index known only at run time covers everything that it may reach.

Some axes of the grid are to run at once, the others in order. That is allowed if no two cells that
differ along the former touch the same element of a buffer that either of them writes to. `apart`
proves that of one buffer. A dimension tells two cells apart if their intervals along it differ, and
the intervals of all cells, over all accesses and rounds, are the same or disjoint. Some such
dimension must tell each two cells apart. Buffers that nothing in the grid writes to need no proof.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pallas_shim.evaluator import memory
from pallas_shim.evaluator.analysis.alias import AliasAnalysis
from pallas_shim.evaluator.analysis.cell_tables import Table, table_of
from pallas_shim.evaluator.blocks import clamped
from pallas_shim.evaluator.program import PURE, Instruction, RefType, Region, Value
from pallas_shim.jax_compat.state import Index, Slice, Transpose

# Grids with more cells than this along the axes in question are not proven to be apart.
_MOST_CELLS = 1 << 20
# The first operand that is an index of the path, of the accesses that have one.
_LEAVES = {"get": 1, "store": 2}


class Span(NamedTuple):
    """The part of one dimension that an index takes: ``length`` elements from ``start`` on, None if
    known only at run time. ``kept``: the result has the dimension. ``exact``: no strides."""

    start: Table | None
    length: int
    kept: bool = True
    exact: bool = True


def block_spans(
    instruction: Instruction, known: Mapping[Value, Table], axes: int
) -> list[Span] | None:
    """The part of its buffer that a block's view takes, None if the instruction makes no block."""
    block = instruction.operation.params.get("block")
    if block is None:
        return None
    leaves = instruction.ins[1:]
    spans = []
    for entry in block:
        if isinstance(entry, slice):
            spans.append(Span(_constant(entry.start, axes), entry.stop - entry.start))
        elif isinstance(entry, tuple):
            leaf, scale, dim, size, squeezed = entry
            starts = table_of(leaves[leaf], known, axes)
            if starts is not None:
                starts = clamped(starts, scale, dim, size)
            spans.append(Span(starts, size, not squeezed))
        else:
            spans.append(Span(_constant(entry, axes), 1, False))
    return spans


def index_spans(
    step: Index, shape: Sequence[int], leaves: Sequence[Value], known: Mapping[Value, Table],
    axes: int,
) -> list[Span]:  # fmt: skip
    """The part of an array of the given shape that one index of a path takes."""

    def starts(index: Any, dim: int, size: int) -> Table | None:
        if not isinstance(index, memory.Dynamic):
            return _constant(index, axes)
        table = table_of(leaves[index.leaf], known, axes)
        return None if table is None else clamped(table, 1, dim, size)

    spans = []
    for dim, at in zip(shape, step.dims, strict=True):
        if isinstance(at, Slice):
            length = max(at.size - 1, 0) * at.stride + 1
            spans.append(Span(starts(at.start, dim, at.size), length, True, at.stride == 1))
        else:
            spans.append(Span(starts(at, dim, 1), 1, False))
    return spans


def _constant(number: int, axes: int) -> Table:
    return np.full((1,) * axes, number, np.int64)


class Box(NamedTuple):
    """``dims``: for each dimension of the ref the buffer's that it lies along, from the box's
    start on; None where it can't be told, so that indices don't narrow the box."""

    root: Value
    starts: tuple[Table, ...]
    lengths: tuple[int, ...]
    dims: tuple[int | None, ...]

    def within(self, spans: Sequence[Span]) -> Box:
        starts, lengths = list(self.starts), list(self.lengths)
        dims: list[int | None] = []
        for dim, span in zip(self.dims, spans, strict=True):
            exact = dim is not None and span.start is not None
            if dim is not None and span.start is not None:
                starts[dim] = starts[dim] + span.start
                lengths[dim] = span.length
            if span.kept:
                dims.append(dim if exact and span.exact else None)
        return Box(self.root, tuple(starts), tuple(lengths), tuple(dims))

    def lost(self, rank: int) -> Box:
        return self._replace(dims=(None,) * rank)


class AccessSpan(NamedTuple):
    box: Box
    writes: bool


class Footprints:
    """The accesses of a grid's region to each buffer.

    ``accesses``: by root. ``written``: the roots that are written to, without those that each cell
    allocates itself.
    """

    def __init__(
        self, aliases: AliasAnalysis, axes: int, region: Region, known: Mapping[Value, Table]
    ):
        self.aliases = aliases
        self.axes = axes
        self.known = known
        self.accesses: dict[Value, list[AccessSpan]] = {}
        self._boxes: dict[Value, Box] = {}
        for instruction in region.walk():
            self._visit(instruction)
        made = {
            out for i in region.walk() if i.operation.effects.allocates for out in i.outs
        }  # by each cell anew
        self.written = [
            root
            for root, found in self.accesses.items()
            if root not in made and any(access.writes for access in found)
        ]

    def box(self, ref: Value) -> Box:
        """The part of its buffer that a ref covers: all of it, if the ref comes from outside."""
        known = self._boxes.get(ref)
        if known is None:
            root = self.aliases.root(ref)
            shape = root.ref.shape
            starts = (_constant(0, self.axes),) * len(shape)
            dims = tuple(range(len(shape))) if root is ref else (None,) * ref.ref.ndim
            known = self._boxes[ref] = Box(root, starts, shape, dims)
        return known

    def _visit(self, instruction: Instruction) -> None:
        operation, ins, outs, regions, _ = instruction
        if regions:
            return
        if operation.effects is PURE:
            for out in outs:
                if type(out.type) is RefType and ins and type(ins[0].type) is RefType:
                    self._boxes[out] = self._viewed(instruction, out)
            return
        effects = operation.effects
        for writes, positions in ((False, effects.reads), (True, effects.writes)):
            for position in positions:
                box = self.box(ins[position])
                if operation.name in _LEAVES:
                    leaves = ins[_LEAVES[operation.name] :]
                    box = self.along(box, ins[0].ref, operation.params["path"], leaves)
                self.accesses.setdefault(box.root, []).append(AccessSpan(box, writes))

    def _viewed(self, instruction: Instruction, out: Value) -> Box:
        box = self.box(instruction.ins[0])
        if instruction.name == "blocks":
            return self._of_blocks(instruction, box).lost(out.ref.ndim)
        spans = block_spans(instruction, self.known, self.axes)
        return box.lost(out.ref.ndim) if spans is None else box.within(spans)

    def _of_blocks(self, instruction: Instruction, box: Box) -> Box:
        """The part of a buffer from the first element of blocks that lie evenly to the last one."""
        params, indices = instruction.operation.params, instruction.ins[1:]
        at = [table_of(index, self.known, self.axes) for index in indices]
        if None in box.dims or any(table is None for table in at):
            return box
        shape, steps = instruction.outs[0].ref.shape, params["steps"]
        kept = dict(zip(params["kept"], shape[len(steps) :], strict=True))
        spans = []
        for dim, starts in enumerate(params["starts"]):
            known = np.asarray(starts)
            start = known[tuple(at)] if at else known.reshape((1,) * self.axes)
            further = [step[dim] * (n - 1) for step, n in zip(steps, shape, strict=False)]
            start = start + sum(n for n in further if n < 0)
            spans.append(Span(start, sum(map(abs, further)) + kept.get(dim, 1)))
        return box.within(spans)

    def along(self, box: Box, type: RefType, path: Any, leaves: Sequence[Value]) -> Box:
        """The part of a ref's box that a path leads to."""
        shape, dtype = type.shape, type.dtype
        for step in path:
            if isinstance(step, Index):
                box = box.within(index_spans(step, shape, leaves, self.known, self.axes))
            elif isinstance(step, Transpose):
                box = box._replace(dims=tuple([box.dims[d] for d in step.permutation]))
            shape, dtype = memory.viewed_type(shape, dtype, (step,))
            if not isinstance(step, (Index, Transpose)):
                box = box.lost(len(shape))
        return box

    def apart(self, root: Value, axes: Sequence[int]) -> tuple[int, ...]:
        """The axes among the given ones along which cells may meet in a buffer: none, if it
        is proven that cells that differ along any don't."""
        together: list[np.ndarray] = []
        for dim in range(len(root.ref.shape)):
            intervals = _intervals([a.box for a in self.accesses[root]], dim, axes)
            if intervals is not None:
                together.append(intervals)
        apart_along = {axis for number in together for axis in axes if number.shape[axis] > 1}
        meeting = tuple([axis for axis in axes if axis not in apart_along])
        if meeting:
            return meeting
        shape = np.broadcast_shapes(*[number.shape for number in together])
        if math.prod(shape) > _MOST_CELLS:
            return tuple(axes)
        total = np.zeros(shape, np.int64)
        for number in together:
            total = total * (int(number.max()) + 1) + number
        if len(np.unique(total)) == total.size:
            return ()
        return (min(axes, key=lambda axis: shape[axis]),)


def _intervals(boxes: Sequence[Box], dim: int, axes: Sequence[int]) -> np.ndarray | None:
    """For each cell along the axes, the number of the interval that it covers in one dimension of a
    buffer, wherever the cell is along the other axes. None if some intervals overlap without being
    the same."""
    rest = tuple([a for a in range(boxes[0].starts[dim].ndim) if a not in axes])
    low = high = None
    for box in boxes:
        first = box.starts[dim].min(rest, keepdims=True)
        end = box.starts[dim].max(rest, keepdims=True) + box.lengths[dim]
        low = first if low is None else np.minimum(low, first)
        high = end if high is None else np.maximum(high, end)
    assert low is not None and high is not None
    low, high = np.broadcast_arrays(low, high)
    if low.size == 1:
        return np.zeros(low.shape, np.int64)
    if low.size > _MOST_CELLS:
        return None
    # One number for each interval, in the order of where it starts and then of where it ends.
    base = int(high.max()) + 1
    found, number = np.unique(low * base + high, return_inverse=True)
    starts, ends = np.divmod(found, base)
    if np.any(starts[1:] < ends[:-1]):
        return None
    return number.reshape(low.shape)
