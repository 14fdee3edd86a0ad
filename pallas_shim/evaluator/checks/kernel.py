"""The checks of one kernel: its blocks, its scratch memory, its cells, what it leaves behind."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pallas_shim.evaluator.analysis.cell_tables import table_of, tables
from pallas_shim.evaluator.checks import prune, undefined
from pallas_shim.evaluator.checks.lowering import OBJECT, Checker, Memory
from pallas_shim.evaluator.checks.run import Activation, Site
from pallas_shim.evaluator.checks.shadow import (
    DEFINED,
    NEVER,
    OTHER_CELL,
    Cut,
    Shadow,
    Starts,
    Window,
)
from pallas_shim.evaluator.findings import Finding
from pallas_shim.evaluator.program import Array, Effects, Instruction, Region, Value
from pallas_shim.jax_compat.pallas import Block, PallasCall

if TYPE_CHECKING:  # lower is in a higher layer
    from pallas_shim.evaluator.lower import Lowering

# The blocks of larger grids are looked at while the kernel runs.
_MOST_CELLS = 1 << 20


class _Operand(NamedTuple):
    """An input or output whose blocks are checked. ``site`` stands for its block specification.
    ``starts``: where its block is in each cell; None if only the run knows."""

    position: int
    site: Site
    cut: Cut
    starts: np.ndarray | None


class KernelChecks:
    """The checks of a pallas_call while it is lowered.

    Use: `begin_cell`, `blocks` and `end_cell` in turn while the cell is lowered; then `finish`,
    which gives the cells without checks that nothing needs; then `enter`, before the cells are
    added to the program; and after that `output` for each result.
    """

    def __init__(
        self,
        checker: Checker,
        call: PallasCall,
        names: Sequence[str],
        shapes: Sequence[tuple[int, ...]],
        sizes: Sequence[Value],
    ) -> None:
        self.checker = checker
        self.lowering: Lowering = checker.lowering
        self.call = call
        self.names = names
        self.shapes = shapes
        self.sizes = sizes
        self.activation = Value(OBJECT)
        self._outer = checker.activation, checker.kernel
        checker.activation, checker.kernel = self.activation, call.name
        self._made: list[tuple[Value, Memory | None, Callable[[], Any]]] = []
        self._windows: dict[int, Memory] = {}
        self._always_written: set[int] = set()
        self._operands: list[_Operand] = []
        self._static: list[Callable[[Activation], Finding]] = []

    # -- one cell -------------------------------------------------------------------------------

    def begin_cell(self, indices: Sequence[Value]) -> None:
        """Before the index maps run."""

        def enter(activation: Activation, *cell: Array) -> tuple[()]:
            activation.cell = tuple(map(int, cell))
            return ()

        self.checker.emit("cell", [self.activation, *indices], enter)

    def blocks(
        self,
        indices: Sequence[Value],
        starts: Sequence[Sequence[Value]],
        body: Sequence[Instruction],
        refs: Sequence[Value],
        scratch: Sequence[Value],
    ) -> None:
        """Before the kernel's own code. ``body`` computes the ``starts`` of the blocks, which are
        in ``refs``."""
        known = self._tables(indices, body)
        for position, (block, of_block) in enumerate(zip(self.call.blocks, starts, strict=True)):
            self._block(position, block, of_block, refs[position], known)
        turn = [
            index
            for index, parallel in zip(indices, self.call.parallel, strict=True)
            if parallel
        ]
        for at, ref in enumerate(scratch):
            name = self._name(len(self.call.blocks) + at, None)
            self._scratch(ref, name, turn)

    def end_cell(self, refs: Sequence[Value]) -> None:
        """After the kernel's own code."""
        self._always_written = {
            position for position, ref in enumerate(refs) if ref in self.checker.defined
        }
        self.checker.defined.difference_update(refs)

    def _name(self, at: int, block: Block | None) -> str:
        at += self.call.num_prefetch
        if at < len(self.names):
            return self.names[at]
        return "a ref" if block is None else block.origin

    def _block(
        self,
        position: int,
        block: Block,
        starts: Sequence[Value],
        ref: Value,
        known: Any,
    ) -> None:
        name = self._name(position, block)
        self.lowering.names.setdefault(ref, name)
        is_output = position >= self.call.num_inputs
        aliased = any(
            position in (given - self.call.num_prefetch, self.call.num_inputs + out)
            for given, out in self.call.aliases
        )
        if block.in_hbm or self.call.on_gpu:
            if is_output and not self.call.on_gpu:
                code = DEFINED if aliased else NEVER
                shape = ref.ref.shape
                self._windows[position] = self._memory(ref, name, lambda: Shadow(shape, code))
            if block.in_hbm:
                return
        site = self.checker.site(ref, "has a block of")
        cut = _cut(block, self.shapes[position])
        table = None if known is None else self._starts(cut, starts, known)
        operand = _Operand(position, site, cut, table)
        self._operands.append(operand)
        if self.call.on_gpu:
            return
        if self.checker.checks("bounds"):
            self._bounds(operand, starts)
        inside = table is not None and _all_inside(cut, table)
        # Where blocks divide the array, those that aren't inside are wholly outside.
        if is_output or not inside and not _divides(cut):
            shape = ref.ref.shape
            memory = self._memory(ref, name, lambda: Window(shape, cut, is_output))
            self._windows[position] = memory
            assert memory.shadow is not None
            self.checker.emit("block", [memory.shadow, *starts], _move(cut), memory)

    def _memory(self, ref: Value, name: str, make: Callable[[], Any]) -> Memory:
        memory = self.checker.memory[ref] = Memory(name, Value(OBJECT))
        assert memory.shadow is not None
        self._made.append((memory.shadow, memory, make))
        return memory

    def _scratch(self, ref: Value, name: str, turn: Sequence[Value]) -> None:
        if ref.ref.space.startswith("semaphore") or ref.ref.key_ndim:
            return
        shape = ref.ref.shape
        memory = self._memory(ref, name, lambda: Shadow(shape, NEVER))
        if turn and self.checker.checks("races"):
            assert memory.shadow is not None
            self.checker.emit("turn", [memory.shadow, *turn], _turn, memory)

    # -- blocks ---------------------------------------------------------------------------------

    def _tables(self, indices: Sequence[Value], body: Sequence[Instruction]) -> Any:
        """The tables of scalars in the index maps, over all cells. None if they aren't known."""
        if any(size.const is None for size in self.sizes):
            return None
        bounds = [int(size.const) for size in self.sizes if size.const is not None]
        if not 0 < math.prod(bounds) <= _MOST_CELLS:
            return None
        return tables(bounds, Region(tuple(indices), tuple(body), ()), {}, {})

    def _starts(self, cut: Cut, starts: Sequence[Value], known: Any) -> np.ndarray | None:
        """The starts of a block in each cell: an integer for each cell, in order, and dimension."""
        bounds = [int(size.const) for size in self.sizes if size.const is not None]
        columns = []
        for start, scale in zip(starts, cut.scales, strict=True):
            table = table_of(start, known, len(bounds))
            if table is None:
                return None
            full = np.broadcast_to(table.astype(np.int64) * scale, bounds)
            columns.append(full.reshape(-1))
        return np.stack(columns, -1) if columns else np.zeros((math.prod(bounds), 0), np.int64)

    def _bounds(self, operand: _Operand, starts: Sequence[Value]) -> None:
        """The check that no block lies wholly outside its array."""
        cut, site, table = operand.cut, operand.site, operand.starts
        if table is None:
            fn = _check_block(cut, site)
            self.checker.emit("bounds", [self.activation, *starts], fn)
            return
        for axis, size in enumerate(cut.sizes):
            offset = table[:, axis] - cut.before[axis]
            wrong = (offset < -cut.before[axis]) | (offset >= cut.shape[axis] + cut.after[axis])
            if size and cut.shape[axis] and wrong.any():
                number = int(np.argmax(wrong))
                cell = self._cell(number)
                starts_there = tuple(map(int, table[number]))
                self._static.append(
                    functools.partial(_outside_block, site, cut, axis, starts_there, cell)
                )
                return

    def _cell(self, number: int) -> tuple[int, ...]:
        bounds = [int(size.const) for size in self.sizes if size.const is not None]
        return tuple(map(int, np.unravel_index(number, bounds))) if bounds else ()

    # -- the whole kernel -----------------------------------------------------------------------

    def finish(self, cells: Sequence[Instruction]) -> list[Instruction]:
        """The cells, without the checks that are proven or that nothing needs."""
        for operand in self._operands:
            memory = self._windows.get(operand.position)
            if memory is not None and operand.position >= self.call.num_inputs:
                complete = operand.position in self._always_written and _covers(operand)
                memory.needed = memory.needed or not complete
        for position in self._windows.keys() - {o.position for o in self._operands}:
            memory = self._windows[position]
            if position not in self._always_written:
                memory.needed = True
        if not self.checker.checks("uninitialized", "blocks", "races"):
            for memory in self._windows.values():
                memory.needed = False
        cells = prune.proven(cells)
        cells = prune.unneeded(cells)
        return prune.without_cell(cells) if not prune.has_checks(cells) else cells

    def enter(self) -> None:
        """Emits what has to be there before the first cell."""
        name, source = self.call.name, self.call.source
        where = (source or "").partition(" ")[0] or None
        self.checker.define(
            self.activation, "kernel", lambda: Activation(name, where), None
        )
        for value, memory, make in self._made:
            if memory is None or memory.needed:
                self.checker.define(value, "shadow", make, memory)
        if self._static:
            static = tuple(self._static)

            def report(activation: Activation) -> tuple[()]:
                for make in static:
                    activation.run.report(make(activation))
                return ()

            self.checker.emit("blocks", [self.activation], report)

    def output(self, position: int, value: Value) -> Value:
        """Emits the check of a result, and returns the result as the program uses it."""
        memory = self._windows.get(self.call.num_inputs + position)
        if memory is None or not memory.needed:
            return value
        assert memory.shadow is not None
        site = Site(next(self.checker._numbers), memory.name, "leaves", self.lowering.source)
        aliased = any(out == position for _, out in self.call.aliases)
        initial = DEFINED if aliased else NEVER
        ins = [self.activation, memory.shadow]
        self.checker.emit("output", ins, _check_output(site, initial), memory)
        if self.checker.asked.disturbing and not value.type.key_ndim:
            (value,) = self.lowering.memory(
                "disturb", [value, *ins], [value.type], _disturb_output(site, initial),
                Effects(io=True), view=True,
            )  # fmt: skip
        return value

    def leave(self) -> None:
        """After all results."""
        self.checker.activation, self.checker.kernel = self._outer


def _cut(block: Block, shape: tuple[int, ...]) -> Cut:
    dims = block.dims
    return Cut(
        tuple(shape[: len(dims)]),
        tuple(dim.padding[0] for dim in dims),
        tuple(dim.padding[1] for dim in dims),
        tuple(dim.size for dim in dims),
        tuple(dim.kind == "squeezed" for dim in dims),
        tuple(dim.size if dim.kind == "blocked" else 1 for dim in dims),
    )


def _divides(cut: Cut) -> bool:
    """Whether blocks that aren't outside are inside."""
    return cut.before == cut.after == (0,) * len(cut.sizes) and all(
        scale == size and size and dim % size == 0
        for dim, size, scale in zip(cut.shape, cut.sizes, cut.scales, strict=True)
    )


def _all_inside(cut: Cut, starts: np.ndarray) -> bool:
    offsets = starts - np.asarray(cut.before, np.int64)
    most = np.asarray(cut.shape, np.int64) - np.asarray(cut.sizes, np.int64)
    return bool(((offsets >= 0) & (offsets <= most)).all())


def _covers(operand: _Operand) -> bool:
    """Whether the blocks of all cells are known to cover the array."""
    cut, starts = operand.cut, operand.starts
    if starts is None or not all(cut.sizes):
        return False
    if any(s != size for s, size in zip(cut.scales, cut.sizes, strict=True)):
        return False
    counts = [-(-dim // size) for dim, size in zip(cut.shape, cut.sizes, strict=True)]
    numbers = starts // np.asarray(cut.sizes, np.int64) if cut.sizes else starts
    if ((numbers < 0) | (numbers >= np.asarray(counts, np.int64))).any():
        return False
    if not counts:
        return len(starts) > 0
    if math.prod(counts) > len(starts):
        return False
    flat = np.ravel_multi_index(tuple(numbers.T), counts)
    return len(np.unique(flat)) == math.prod(counts)


def _move(cut: Cut) -> Callable[..., tuple[()]]:
    def move(window: Window, *numbers: Array) -> tuple[()]:
        window.move(cut.starts(numbers))
        return ()

    return move


def _turn(shadow: Shadow, *place: Array) -> tuple[()]:
    turn = tuple(map(int, place))
    if turn != shadow.turn:
        if shadow.turn is not None:
            shadow.undefine(OTHER_CELL)
        shadow.turn = turn
    return ()


def _check_block(cut: Cut, site: Site) -> Callable[..., tuple[()]]:
    def check(activation: Activation, *numbers: Array) -> tuple[()]:
        starts = cut.starts(numbers)
        axis = cut.axis_outside(starts)
        if axis is not None:
            cell = activation.cell or ()
            activation.run.report(_outside_block(site, cut, axis, starts, cell, activation))
        return ()

    return check


def _outside_block(
    site: Site, cut: Cut, axis: int, starts: Starts, cell: tuple[int, ...], activation: Activation
) -> Finding:
    scale = cut.scales[axis]
    number = starts[axis] // scale if scale else 0
    message = (
        f"has in cell {cell} a block of {site.ref} outside the array: along dimension {axis} the "
        f"index map returns {number}, where the array of shape {cut.shape} is cut into blocks of "
        f"{cut.sizes}"
    )
    advice = "Keep the index map inside the array"
    if scale > 1 and 0 <= number < cut.shape[axis]:
        advice = "Index maps return block numbers, not elements: divide by the block's size"
    key = ", ".join(f"{s}:{s + n}" for s, n in zip(starts, cut.sizes, strict=True))
    return activation.finding(
        "bounds", "block-outside", message, advice, site, site.access(f"[{key}]", cell)
    )


def _check_output(site: Site, initial: int) -> Callable[..., tuple[()]]:
    def check(activation: Activation, shadow: Shadow) -> tuple[()]:
        activation.cell = None
        if isinstance(shadow, Window):
            shadow = shadow.undefined(initial)
        if shadow.defined or not shadow.entries().any():
            return ()
        candidates = activation.run.candidates
        candidates[site.number] = undefined.unwritten(activation, site, shadow.entries())
        return ()

    return check


def _disturb_output(site: Site, initial: int) -> Callable[..., Any]:
    def disturb(value: Array, activation: Activation, shadow: Shadow) -> Array:
        if not activation.run.disturbs(site):
            return value
        if isinstance(shadow, Window):
            shadow = shadow.undefined(initial)
        if shadow.defined:
            return value
        codes = shadow.entries()
        codes = codes[tuple(slice(0, n) for n in np.shape(value)[: codes.ndim])]
        return undefined.replaced(np.asarray(value), codes, activation.run.garbage)[()]

    return disturb
