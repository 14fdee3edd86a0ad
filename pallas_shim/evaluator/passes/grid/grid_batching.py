"""Grid batching: runs cells of a grid together that are proven independent.

Together means that each instruction runs for all of these cells before the next instruction. A grid
runs its cells in lexicographic order. Here, the cells along some axes, the *parallel* ones, run
together, and the rest in order. That gives the same results if

1. no two cells that differ along a parallel axis touch memory that either writes to, wherever they
   are along the other axes (analysis/dependence.py);
2. scratch is the exception: each cell gets its own. That is right if nothing else looks at it, and
   a cell only reads elements that it has stored itself. It may also read what the first of the
   cells that run in order has stored, if the grid visits all of those before any cell that differs
   along a parallel axis (privatisation.py);
3. all cells that run together execute the same instructions: whether a branch is taken, and how
   often a loop runs, doesn't differ between them (`Varies`). The exception is code that a cell may
   execute for others (vectorise_control.py);
4. nothing outside sees the order in which cells run.

`dimension_semantics` isn't used. An axis is parallel only if all of this is proven. Cells run in
chunks, so that stacks stay in the cache, and memory doesn't grow with the grid.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pallas_shim.evaluator import refs, registry
from pallas_shim.evaluator.analysis.alias import AliasAnalysis
from pallas_shim.evaluator.analysis.cell_tables import Table, constants, table_of, tables
from pallas_shim.evaluator.analysis.dependence import Footprints
from pallas_shim.evaluator.passes.grid.layout import Layout
from pallas_shim.evaluator.passes.grid.privatisation import carries_nothing
from pallas_shim.evaluator.passes.grid.reductions import accumulations
from pallas_shim.evaluator.passes.grid.scan_as_grid import Loop, as_grid
from pallas_shim.evaluator.passes.grid.vectorise import Varies, Vectoriser
from pallas_shim.evaluator.passes.grid.vectorise_control import run
from pallas_shim.evaluator.passes.rewrite import is_ufunc, with_regions
from pallas_shim.evaluator.program import (
    CELLS,
    PURE,
    ArrayType,
    Instruction,
    Operation,
    Program,
    Region,
    Value,
    branch_taken,
    make_instruction,
)

# A stack of more bytes than this leaves the cache between two instructions.
_LARGEST_STACK = 1 << 19
# Calls are a small part of a cell's time if it has a product of so many multiplications. Then as
# many cells run together as have so many bytes of arrays in all, which stay in a cache.
_LARGE_PRODUCT, _CACHED = 1 << 20, 3 << 19
# Blocks of a matrix that are multiplied with one block of another are rows or columns of one large
# product. Then so many bytes may be in a stack, if there are at most so many elementwise
# operations for each product, all of them cheap: one that leaves the cache costs less than smaller
# products would.
_LARGEST_PANEL, _FEW = 1 << 24, 3
_CHEAP = frozenset({"add", "add_any", "sub", "mul", "max", "min"})
# Large products that are added up one after the other are written out, if there are at most so
# many. Then sums are values, and only the last one is stored.
_MOST_WRITTEN_OUT = 16
# Grids of more cells times instructions than this are not looked at.
_LARGEST_PROOF = 1 << 26
# The extra cost of running an instruction cell by cell here instead of in each cell, as a fraction
# of the cost of a call.
_ONE_BY_ONE = 0.5


def batch_grids(program: Program) -> Program:
    registry.load()
    return Program(program.name, _Grids(program).region(program.top))


class _Grids:
    def __init__(self, program: Program):
        self.aliases = AliasAnalysis(program)
        self.held = constants(program, self.aliases)

    def region(self, region: Region) -> Region:
        body: list[Instruction] = []
        private = self.aliases.only_users(region)
        for at, instruction in enumerate(region.body):
            if instruction.regions:
                batched = None
                own = {root for root, user in private.items() if user == at}
                if instruction.name == "grid":
                    batched = _Grid(self.aliases, self.held, instruction, own).batched()
                elif instruction.name == "scan":
                    batched = self._loop(instruction, own)
                if batched is not None:
                    body += batched
                    continue
                instruction = with_regions(instruction, list(map(self.region, instruction.regions)))
            body.append(instruction)
        return Region(region.params, tuple(body), region.results)

    def _loop(self, scan: Instruction, own: set[Value]) -> list[Instruction] | None:
        loop = as_grid(scan)
        batched = loop and batched_loop(loop, self.aliases, self.held, own)
        return [*batched, *loop.after] if loop and batched is not None else None


def batched_loop(
    loop: Loop, aliases: AliasAnalysis, held: Mapping[Value, np.ndarray], own: set[Value]
) -> list[Instruction] | None:
    """Instructions that do the same as a loop, with rounds together. None if that isn't proven or
    doesn't pay. ``held``: the contents of buffers that are known. ``own``: those only it uses."""
    return _Grid(aliases, held, loop.grid, own, loop).batched()


class _Proven(NamedTuple):
    """Axes along which cells may run at once, and the buffers that each then needs its own of."""

    axes: tuple[int, ...]
    private: tuple[Value, ...]


class _Grid:
    """One grid. ``held``: the contents of buffers that are known. ``own``: the buffers that only
    it uses. ``loop``: the loop that it is."""

    def __init__(
        self,
        aliases: AliasAnalysis,
        held: Mapping[Value, np.ndarray],
        instruction: Instruction,
        own: set[Value],
        loop: Loop | None = None,
    ):
        self.aliases = aliases
        self.held = held
        self.instruction = instruction
        self.own = own
        self.loop = loop
        (self.region,) = instruction.regions

    def batched(self) -> list[Instruction] | None:
        """Instructions that do the same as the grid, with cells together. None if that isn't proven
        or doesn't pay."""
        if any(size.const is None for size in self.instruction.ins) or not self._tractable():
            return None
        self.sizes = [int(size.const) for size in self.instruction.ins if size.const is not None]
        axes = tuple([axis for axis, size in enumerate(self.sizes) if size > 1])
        cells, instructions = math.prod(self.sizes), sum(1 for _ in self.region.walk())
        if not axes or not 0 < cells * instructions <= _LARGEST_PROOF:
            return None
        given = self.loop.known if self.loop else {}
        self.known: Mapping[Value, Table] = tables(self.sizes, self.region, given, self.held)
        self.footprints = Footprints(self.aliases, len(self.sizes), self.region, self.known)
        self.accumulated = accumulations(self.region, self.footprints) if self.loop else {}
        for switch in self.region.body:  # an attempt would only find the same
            if switch.name == "switch" and switch.ins[0] in self.known:
                which = self.known[switch.ins[0]]
                axes = tuple([axis for axis in axes if which.shape[axis] == 1])
        while True:
            proven = self._proven(axes)
            if not proven.axes:
                return None
            try:
                return self._emitted(proven)
            except Varies as difference:
                assert difference.axes, "cells that aren't at once can't differ"
                axes = tuple([axis for axis in proven.axes if axis not in difference.axes])

    def _tractable(self) -> bool:
        """Whether there is nothing in the region that no proof here speaks of."""
        for instruction in self.region.walk():
            operation, ins, outs, _, _ = instruction
            if operation.effects.io:
                return False
            for type in (*operation.ins, *operation.outs):
                if type.key_ndim or 0 in type.shape:
                    return False
        return True

    # -- the proof --------------------------------------------------------------------------

    def _proven(self, axes: tuple[int, ...]) -> _Proven:
        """The most of the given axes for which the conditions on memory hold."""
        while axes:
            private: list[Value] = []
            accumulated = {accumulation.root for accumulation in self.accumulated.values()}
            for root in self.footprints.written:
                if root in accumulated:
                    continue
                refused = self.footprints.apart(root, axes)
                if refused and root in self.own:
                    refused = self._left_to_others(root, axes)
                    if not refused:
                        private.append(root)
                if refused:
                    axes = tuple([axis for axis in axes if axis not in refused])
                    break
            else:
                return _Proven(axes, tuple(private))
        return _Proven((), ())

    def _left_to_others(self, root: Value, axes: tuple[int, ...]) -> tuple[int, ...]:
        """The axes among the given ones along which cells may see what others left in scratch:
        none if each cell may have its own."""
        rest = [a for a, size in enumerate(self.sizes) if size > 1 and a not in axes]

        def taken(switch: Instruction) -> int | None:
            return self._taken(switch, ())

        def taken_first(switch: Instruction) -> int | None:
            return self._taken(switch, rest)

        if carries_nothing(self.aliases, root, self.region, None, taken):
            return ()
        late = tuple([axis for axis in axes if rest and axis > min(rest)])
        if late:
            return late
        if carries_nothing(self.aliases, root, self.region, taken_first, taken):
            return ()
        return axes[-1:]

    def _taken(self, switch: Instruction, first: Sequence[int]) -> int | None:
        """The branch that all cells take that are the first along some axes."""
        table = table_of(switch.ins[0], self.known, len(self.sizes))
        if table is None:
            return None
        found = table[tuple(slice(1) if a in first else slice(None) for a in range(table.ndim))]
        which = {branch_taken(int(index), len(switch.regions)) for index in np.unique(found)}
        return which.pop() if len(which) == 1 else None

    # -- chunks -----------------------------------------------------------------------------

    def _emitted(self, proven: _Proven) -> list[Instruction] | None:
        if self._multiplies() and (body := self._in_chunks(proven, panels=True)) is not None:
            return body
        return self._in_chunks(proven, panels=False)

    def _multiplies(self) -> bool:
        """Whether nearly all of the grid's work is large products of matrices."""
        products = few = 0
        for instruction in self.region.walk():
            if _multiplications(instruction) >= _LARGE_PRODUCT:
                products += 1
            elif is_ufunc(instruction.operation) and instruction.outs[0].type.shape:
                if instruction.name not in _CHEAP:
                    return False
                few += 1
        return 0 < products and few <= _FEW * products

    def _in_chunks(self, proven: _Proven, panels: bool) -> list[Instruction] | None:
        """``panels``: in chunks that make large products of smaller ones. None if they don't, or
        if it doesn't pay."""
        chunks, cut = self._chunks(proven.axes, panels)
        if math.prod(chunks) == 1:
            return None
        ranges = [(0, size) for size in self.sizes]
        whole = self.sizes[cut] // chunks[cut] * chunks[cut]
        ranges[cut] = (0, whole)
        vectorised, body = self._on(ranges, chunks, proven)
        cells = math.prod(chunks)
        if vectorised.calls * (cells - 1) <= vectorised.single * cells * _ONE_BY_ONE:
            return None
        products = [i for i in Region((), tuple(body), ()).walk() if i.name == "dot_general"]
        if panels and not all(map(_joins, products)):
            return None
        if whole < self.sizes[cut]:
            ranges[cut], chunks[cut] = (whole, self.sizes[cut]), self.sizes[cut] - whole
            body += self._on(ranges, chunks, proven)[1]
        return body

    def _chunks(self, axes: Sequence[int], panels: bool) -> tuple[list[int], int]:
        """The number of cells along each axis that run together, and the axis on which a partial
        chunk may be left."""
        sizes, product = [1], 0
        for instruction in self.region.walk():
            outs = instruction.operation.outs
            sizes += [type.nbytes for type in outs if isinstance(type, ArrayType)]
            product = max(product, _multiplications(instruction))
        room = (_LARGEST_PANEL if panels else _LARGEST_STACK) // max(sizes)
        if product >= _LARGE_PRODUCT and not panels:
            room = min(room, _CACHED // sum(sizes))
        room = max(1, room)
        chunks = [1] * len(self.sizes)
        for axis in reversed(axes):
            size = self.sizes[axis]
            if size <= room:
                chunks[axis] = size
                room //= size
                continue
            number = -(-size // room)
            even = next((n for n in range(number, 2 * number + 1) if size % n == 0), number)
            chunks[axis] = -(-size // even)
            return chunks, axis
        return chunks, axes[0]

    def _on(
        self, ranges: Sequence[tuple[int, int]], chunks: Sequence[int], proven: _Proven
    ) -> tuple[Vectoriser, list[Instruction]]:
        """The instructions for a part of the grid."""
        layout = Layout(self.region.params, list(ranges), list(chunks))
        before: list[Instruction] = []
        private: dict[Value, Value] = {}
        source = self.instruction.source
        for root in proven.private:
            type = root.ref._replace(shape=(*layout.sizes, *root.ref.shape))
            private[root] = Value(type)
            made = refs.allocation(type, 0)  # each cell stores before it reads
            before.append(make_instruction((made, (), (private[root],), (), source)))
        written = set(self.footprints.written)
        rest = [axis for axis in range(len(self.sizes)) if axis not in proven.axes]
        views: dict[Any, Value] = {}
        body: tuple[Instruction, ...] = ()
        parts = self._parts(layout, rest)
        for part in parts:
            vectorised = Vectoriser(
                part, self.known, private, lambda ref: self.aliases.root(ref) in written,
                self.accumulated, views,
            )  # fmt: skip
            with vectorised.builder.block(vectorised.body):
                run(vectorised, self.region.body)
            body += (*vectorised.entry, *vectorised.body)
        # Instructions that don't depend on the other axes can then leave the inner loop.
        for axes in (rest, proven.axes):
            params = [layout.params[axis] for axis in axes]
            if any(params) and (axes is not rest or len(parts) == 1):
                body = (self._loop(body, layout, axes),)
        return vectorised, [*before, *body]

    def _parts(self, layout: Layout, rest: Sequence[int]) -> list[Layout]:
        """The layout itself, whose axes that run in order become a loop. Or its parts, in order,
        if they are to be written out one after the other."""
        cells = math.prod([self.sizes[axis] for axis in rest])
        if self.loop or not 1 < cells <= _MOST_WRITTEN_OUT or not self._multiplies():
            return [layout]
        numbers = itertools.product(*[range(self.sizes[axis]) for axis in rest])
        return [layout.at(dict(zip(rest, cell, strict=True))) for cell in numbers]

    def _loop(
        self, body: tuple[Instruction, ...], layout: Layout, axes: Sequence[int]
    ) -> Instruction:
        params, sizes, cells = [], [], []
        for axis in axes:
            param = layout.params[axis]
            if param is not None:
                params.append(param)
                cells.append((axis, layout.ranges[axis][0], layout.chunks[axis]))
                sizes.append(Value(param.type, np.asarray(layout.steps[axis], param.type.dtype)))
        types = tuple([size.type for size in sizes])
        of_grid = dict(self.instruction.operation.params)
        if CELLS in of_grid:
            of_grid[CELLS] = tuple(cells)
        operation = Operation("grid", of_grid, types, (), None, PURE, multiple=True)
        region = Region(tuple(params), body, ())
        return make_instruction((operation, tuple(sizes), (), (region,), self.instruction.source))


def _multiplications(instruction: Instruction) -> int:
    """How many a product of matrices has, 0 for other instructions."""
    if instruction.name != "dot_general":
        return 0
    lhs, out = instruction.operation.ins[0], instruction.operation.outs[0]
    (terms, _), _ = instruction.operation.params["dimension_numbers"]
    return math.prod(out.shape) * math.prod(lhs.shape[d] for d in terms)


def _joins(product: Instruction) -> bool:
    """Whether a product of stacks is one of larger matrices: along each axis, only the left
    matrices differ, or only the right ones."""
    _, (lhs_batch, rhs_batch) = product.operation.params["dimension_numbers"]
    lhs, rhs = product.operation.ins
    sizes = [(lhs.shape[x], rhs.shape[y]) for x, y in zip(lhs_batch, rhs_batch, strict=True)]
    return any(max(pair) > 1 for pair in sizes) and all(min(pair) == 1 for pair in sizes)
