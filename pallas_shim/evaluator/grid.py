"""The grid of a pallas_call: its operands as buffers, its blocks as views, its cells as a loop.

Values are those of JAX's interpreter: each operand and result is one buffer, padded to whole blocks
with uninitialised elements, and a cell sees views of it. An operand is copied only if it has to be
padded or if the kernel writes to it. If memory is checked, checked_blocks.py makes the blocks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pallas_shim import jax_compat
from pallas_shim.evaluator import lookahead, memory, outside, refs, watching
from pallas_shim.evaluator.analysis import alias
from pallas_shim.evaluator.blocks import block_viewer
from pallas_shim.evaluator.cell_order import CellOrder
from pallas_shim.evaluator.checked_blocks import CheckedBlocks
from pallas_shim.evaluator.checks.kernel import KernelChecks
from pallas_shim.evaluator.lower import KernelScope, Lowering
from pallas_shim.evaluator.machine import programs
from pallas_shim.evaluator.program import (
    CELLS,
    PURE,
    Array,
    ArrayType,
    Effects,
    Instruction,
    Operation,
    RefType,
    Value,
    ref_type,
)
from pallas_shim.evaluator.registry import Unsupported
from pallas_shim.jax_compat import CheckedMemory
from pallas_shim.jax_compat.pallas import Block, BlockDim, PallasCall


def lower_call(lowering: Lowering, call: PallasCall, ins: Sequence[Value]) -> list[Value]:
    """Emits a pallas_call and returns its results."""
    kernel, _ = jax_compat.open_jaxpr(call.jaxpr)
    operands = iter(ins)
    closed_over = list(itertools.islice(operands, len(kernel.constvars)))
    sizes = [
        _scalar(lowering, next(operands)) if size is None else lowering.const(np.int32(size))
        for size in call.grid
    ]
    arrays = list(operands)
    ref_types = [ref_type(lowering.type(v.aval)) for v in kernel.invars]
    num_blocks = call.num_inputs + call.num_outputs

    prefetch = [Value(t) for t in ref_types[: call.num_prefetch]]
    block_types = ref_types[call.num_prefetch : call.num_prefetch + num_blocks]
    buffers = [
        Value(t._replace(shape=padded_shape(_array_shape(lowering, block), block.dims)))
        for block, t in zip(call.blocks, block_types, strict=True)
    ]
    scratch_types = ref_types[call.num_prefetch + num_blocks :]
    scratch = [Value(t) for t in scratch_types]
    all_names = jax_compat.argument_names(kernel)
    lowering.names.update(zip([*prefetch, *buffers, *scratch], all_names, strict=False))
    names = all_names[call.num_prefetch :]
    checked_blocks = None
    warnings: list[Callable[[], None]] = []
    _share_aliased(call, buffers)
    waits = call.cores is not None and call.cores.waits_for_others
    # Cores that share the grid, and wait for one another.
    shared_by = call.order is not None and call.order.cores > 1 and lowering.machine.talking
    checks = None
    if lowering.checker is not None and shared_by:
        reason = "bounds, blocks and undefined elements, on cores that wait for one another"
        lowering.checker.asked.skipped(call.name, reason)
    elif lowering.checker is not None:
        shapes = [_array_shape(lowering, block) for block in call.blocks]
        checks = KernelChecks(lowering.checker, call, all_names, shapes, sizes)
    watch = lowering.watch
    if watch is not None:
        watched = _watched(lowering, call, all_names, ref_types)
    if call.checked is not None:
        checked_blocks = CheckedBlocks(lowering, call, call.checked, sizes, buffers, block_types)

    def cell(indices: Sequence[Value]) -> None:
        # Cores that wait for one another are programs of one cell each.
        seen_at: Sequence[Value] = () if waits else indices
        seen_of: Sequence[Value] = () if waits else sizes
        cell_order.begin(scratch)
        cell_start = len(lowering.body)
        if checks is not None:
            checks.begin_cell(indices, prefetch)
        starts_start = len(lowering.body)
        starts = [lowering.inline(b.index_map, [*indices, *prefetch]) for b in call.blocks]
        starts = pipeline.turn(cell_order.turn, starts)
        if call.checked is None:
            warnings.extend(outside.warnings_of_blocks(
                call, names, [_array_shape(lowering, b) for b in call.blocks], indices, sizes,
                starts, lowering.body[starts_start:],
            ))  # fmt: skip
        of_maps = lowering.body[starts_start:]
        if checked_blocks is not None:
            blocks = checked_blocks.refs()
            with lowering.block() as body:
                if checks is not None:
                    checks.blocks(indices, starts, of_maps, prefetch, blocks, scratch)
                if watch is not None:
                    seen = [*prefetch, *blocks, *scratch]
                    watching.emit_cell(
                        lowering, watch, watched, seen_at, seen_of, seen, buffers, starts
                    )
                lowering.inline(call.jaxpr, [*prefetch, *blocks, *scratch], closed_over)
                if watch is not None:
                    watching.emit_cell_end(lowering, watch)
                if checks is not None:
                    checks.end_cell(blocks, body)
            checked_blocks.define(blocks, indices, starts, alias.written(body, blocks))
            lowering.body.extend(body)
            return
        views = [
            pipeline.fetched(at, cell_order.turn, starts, buffers, type)
            or _block(lowering, buffer, block.dims, start, type)
            for at, (buffer, block, start, type) in enumerate(
                zip(buffers, call.blocks, starts, block_types, strict=True)
            )
        ]
        if checks is not None:
            checks.blocks(indices, starts, of_maps, prefetch, views, scratch)
        if watch is not None:
            seen = [*prefetch, *views, *scratch]
            watching.emit_cell(lowering, watch, watched, seen_at, seen_of, seen, buffers, starts)
        body_start = len(lowering.body)
        lowering.inline(call.jaxpr, [*prefetch, *views, *scratch], closed_over)
        if watch is not None:
            watching.emit_cell_end(lowering, watch)
        if checks is not None:
            checks.end_cell(views, lowering.body[body_start:])
        if call.synchronised_aliases:
            written = alias.written(lowering.body[body_start:], views)
            axes = list(zip(indices, sizes, strict=True))
            _synchronise(lowering, call, buffers, views, starts, written, axes)
        if not call.keeps_scalars:
            changed = alias.written(lowering.body[body_start:], prefetch)
            with lowering.block() as first:
                for ref in changed:
                    refs.store(lowering, ref, (), (), arrays[prefetch.index(ref)])
            lowering.body[cell_start:cell_start] = first

    cell_order = CellOrder(lowering, call, sizes)
    pipeline = _Pipeline(lowering, call, sizes, prefetch, cell_order)
    local = [i for i in range(len(call.grid)) if i not in call.vmapped_dims]
    # A watch tells operands apart by their memory, even if the caller passed one array twice.
    apart = watch is not None

    def lowered() -> list[Instruction]:
        return lower_cells(
            lowering, call.name, sizes, call.axis_names, local, cell, call.checked,
            call.for_device, scratch if waits else None, cell_order.enter, cell_order.turns,
        )  # fmt: skip

    def part() -> None:
        """What one core runs, with its own memory."""
        cells = lowered()
        own(cells)
        programs.emit_entry(lowering)
        lowering.body.extend(cells)
        if checked_blocks is not None:
            checked_blocks.write_back()
        programs.emit_exit(lowering, list(filter(_is_semaphore, scratch)))

    def own(cells: Sequence[Instruction]) -> None:
        """Emits the memory of a core."""
        written = alias.written(cells, prefetch)
        for ref, array in zip(prefetch, arrays, strict=False):
            define_operand(lowering, ref, array, None, apart or ref in written)
        for ref in [] if waits else scratch:
            allocate(lowering, ref, call.checked)
        for ref, make in checked_blocks.made if checked_blocks is not None else ():
            lowering.define("buffer", ref, (), make, Effects(allocates=True))

    # Build the cells first, though they run last: they decide which operands are written to, and
    # only those need a copy.
    if shared_by:
        cells = cell_order.as_programs(part)
    elif cell_order.has_loops(checks is not None or watch is not None):
        cells = cell_order.one_after_another(scratch, lowered)
    else:
        cells = lowered()
    written = alias.written(cells, buffers)

    inputs = arrays[call.num_prefetch :]
    outputs = buffers[call.num_inputs :]
    for ref, block, array in zip(buffers, call.blocks, inputs, strict=False):
        copied = apart or ref in written or ref in outputs
        define_operand(lowering, ref, array, block.dims, copied, call.checked)
    aliases = {out: arrays[position] for position, out in call.aliases}
    for position, ref in enumerate(outputs):
        dims = call.blocks[call.num_inputs + position].dims
        if ref in buffers[: call.num_inputs]:
            continue
        if position in aliases:
            define_operand(lowering, ref, aliases[position], dims, True, call.checked)
        else:
            allocate(lowering, ref, call.checked)
    if not shared_by:
        own(cells)
    for warn in warnings:
        _emit_warning(lowering, warn)
    if checks is not None:
        cells = checks.finish(cells)
        checks.enter()
    programs.emit_entry(lowering)
    lowering.body.extend(cells)
    semaphores = [] if waits or shared_by else list(filter(_is_semaphore, scratch))
    programs.emit_exit(lowering, semaphores)
    if checks is not None:
        checks.end()
    if checked_blocks is not None and not shared_by:
        checked_blocks.write_back()
    if watch is not None:
        watching.emit_left(lowering, watch, watched, buffers)
    results = [
        _contents(lowering, ref, block, _array_shape(lowering, block))
        for ref, block in zip(
            buffers[call.num_inputs :], call.blocks[call.num_inputs :], strict=True
        )
    ]
    if checks is not None:
        results = list(map(checks.output, range(len(results)), results))
        checks.leave()
    return results


def _watched(
    lowering: Lowering, call: PallasCall, names: Sequence[str], ref_types: Sequence[RefType]
) -> watching.Kernel:
    shapes = [_array_shape(lowering, block) for block in call.blocks]
    return watching.Kernel(call, names, shapes, [type.space for type in ref_types])


def _emit_warning(lowering: Lowering, warn: Callable[[], None]) -> None:
    def run() -> tuple[()]:
        warn()
        return ()

    lowering.memory("warn", [], [], run, Effects(io=True))


def _is_semaphore(ref: Value) -> bool:
    return ref.ref.space.startswith("semaphore")


def _scalar(lowering: Lowering, size: Value) -> Value:
    """A dynamic size of the grid, which may be given as an array of one element."""
    if not size.type.shape:
        return size
    type = ArrayType((), size.type.dtype)
    return lowering.apply("reshape", [size], [type], {"new_sizes": (), "dimensions": None})[0]


def lower_cells(
    lowering: Lowering,
    name: str,
    sizes: Sequence[Value],
    names: Sequence[Any],
    local: Sequence[int],
    cell: Callable[[Sequence[Value]], None],
    checked: CheckedMemory | None,
    for_device: bool,
    of_each_core: Sequence[Value] | None = None,
    enter: Callable[[Sequence[Value]], Sequence[Value]] = lambda turn: turn,
    turns: Sequence[Value] | None = None,
) -> list[Instruction]:
    """The instructions that run ``cell``, which emits one cell from its indices, on a grid.

    Args:
      sizes: the grid's. Its last axis is the fastest.
      names: the axes' names, or empty.
      local: the axes that the kernel's own code counts.
      checked: how the memory of the cells is checked, if it is.
      for_device: the user asked for no interpreter.
      of_each_core: the cells are cores that wait for one another, and this is memory that each
        has of its own; None if they aren't.
      enter: the indices of the cell that comes when the loops have turned so often.
      turns: how often the loops turn; None: as the grid's sizes say.
    """
    shared: dict[Any, Value] = {}

    def in_kernel(turn: Sequence[Value]) -> Sequence[Value]:
        indices = enter(turn)
        named = dict(zip(names, zip(indices, sizes, strict=True), strict=True)) if names else {}
        own = ([indices[i] for i in local], [sizes[i] for i in local])
        lowering.kernels.append(KernelScope(*own, named, shared, checked, for_device))
        cell(indices)
        lowering.kernels.pop()
        return ()

    if of_each_core is not None:
        return _cores(lowering, names, sizes, of_each_core, shared, in_kernel, checked)
    own_loops = turns is None or turns is sizes
    turns = sizes if turns is None else turns
    if all(s.const is not None and int(s.const) == 1 for s in turns):
        zero = lowering.const(np.int32(0))
        with lowering.block() as cells:
            in_kernel([zero] * len(turns))
    else:
        region = lowering.region([ArrayType((), np.dtype(np.int32))] * len(turns), in_kernel)
        params: dict[str, Any] = {"name": name}
        if own_loops:
            params[CELLS] = tuple([(axis, 0, 1) for axis in range(len(turns))])
        operation = Operation(
            "grid", params, tuple(s.type for s in turns), (), None, PURE, multiple=True
        )
        cells = [Instruction(operation, tuple(turns), (), (region,), lowering.source)]
    with lowering.block() as first:
        for ref in shared.values():
            allocate(lowering, ref, checked)
    return first + cells


def _cores(
    lowering: Lowering,
    names: Sequence[Any],
    sizes: Sequence[Value],
    own: Sequence[Value],
    shared: dict[Any, Value],
    in_kernel: Callable[[Sequence[Value]], Sequence[Value]],
    checked: CheckedMemory | None,
) -> list[Instruction]:
    """The instructions that run cores as programs that wait for one another."""
    machine = lowering.machine
    counts = {name: int(_known(size)) for name, size in zip(names, sizes, strict=True)}

    def core(_: Sequence[Value]) -> Sequence[Value]:
        indices = list(machine.levels[-1].indices.values())
        with machine.within(machine.kernel, machine.where, True):
            with lowering.block() as body:
                in_kernel(indices)
            for ref in (*own, *shared.values()):
                allocate(lowering, ref, checked)
            programs.emit_entry(lowering)
            lowering.body.extend(body)
            programs.emit_exit(lowering, list(filter(_is_semaphore, own)))
        return ()

    with lowering.block() as cores:
        programs.emit_programs(lowering, "core", counts, (), (), (), (), (), core)
    return cores


def _known(size: Value) -> np.ndarray:
    if size.const is None:
        raise Unsupported("core_map", "a number of cores that isn't known")
    return size.const


def _synchronise(
    lowering: Lowering,
    call: PallasCall,
    buffers: Sequence[Value],
    views: Sequence[Value],
    starts: Sequence[Sequence[Value]],
    written: set[Value],
    axes: Sequence[tuple[Value, Value]],
) -> None:
    """Shows in one aliased buffer, after a cell, what the cell wrote through the other.

    ``axes``: the cell's index and the size along each axis of the grid.
    """
    for position, out in call.aliases:
        if position < call.num_prefetch:
            continue
        i, o = position - call.num_prefetch, call.num_inputs + out
        if buffers[i] is buffers[o]:
            continue
        if views[i] in written:
            source, target = i, o
        elif views[o] in written:
            source, target = o, i
            given, result = call.blocks[i], call.blocks[o]
            if (given.dims, starts[i]) == (result.dims, starts[o]) and _is_own(
                given.dims, starts[i], buffers[i].type.shape, axes
            ):
                continue  # no other cell reads it
        else:
            continue
        block, view = call.blocks[source], views[source]
        mirror = _block(lowering, buffers[target], block.dims, starts[source], view.ref)
        value = refs.load(lowering, view, (), (), view.ref.contents)
        refs.store(lowering, mirror, (), (), value)


def _is_own(
    dims: Sequence[BlockDim],
    starts: Sequence[Value],
    shape: Sequence[int],
    axes: Sequence[tuple[Value, Value]],
) -> bool:
    """Whether each cell is seen to have a block that overlaps no other cell's."""
    for index, size in axes:
        if size.const is None:
            return False
        if int(size.const) > 1 and not any(
            start is index and dim.kind != "element" and int(size.const) * dim.size <= extent
            for start, dim, extent in zip(starts, dims, shape, strict=False)
        ):
            return False
    return True


# -- buffers ----------------------------------------------------------------------------------


def _array_shape(lowering: Lowering, block: Block) -> tuple[int, ...]:
    return lowering.type(block.array_aval).shape


def padded_shape(shape: Sequence[int], dims: Sequence[BlockDim]) -> tuple[int, ...]:
    """The shape of a block's buffer: the array's, with element padding, in whole blocks."""
    padded = tuple(
        -(-(size + sum(dim.padding)) // dim.size) * dim.size if dim.size else size
        for size, dim in zip(shape, dims, strict=False)
    )
    return padded + tuple(shape[len(dims) :])  # a PRNG key's own dimensions are never cut


def _inner(shape: Sequence[int], dims: Sequence[BlockDim]) -> tuple[slice, ...]:
    """The place of the array in its padded buffer."""
    return tuple(
        slice(dim.padding[0], dim.padding[0] + size)
        for size, dim in zip(shape, dims, strict=False)
    )


def _share_aliased(call: PallasCall, buffers: list[Value]) -> None:
    """Gives an output the buffer of the input that it shares its array with, where the two are
    one memory."""
    for position, out in call.aliases:
        if position < call.num_prefetch:
            continue
        given, result = position - call.num_prefetch, call.num_inputs + out
        in_hbm = call.blocks[given].in_hbm and call.blocks[result].in_hbm
        waits = call.cores is not None and call.cores.waits_for_others
        if call.checked is None and not (call.for_device and in_hbm) and not waits:
            continue
        if buffers[given].type.shape != buffers[result].type.shape:
            raise Unsupported(
                "pallas_call", "an input and an output that share an array, padded differently"
            )
        buffers[result] = buffers[given]


def allocate(lowering: Lowering, ref: Value, checked: CheckedMemory | None) -> None:
    """Emits the definition of a ref to new memory, which other instructions use already."""
    lowering.define("buffer", ref, (), _filled(ref.ref, checked), Effects(allocates=True))


def _filled(type: RefType, checked: CheckedMemory | None) -> Callable[[], np.ndarray]:
    shape, dtype = type.shape, type.dtype
    fill = memory.initial(type.space, dtype, checked)
    return lambda: np.full(shape, fill, dtype)


def define_operand(
    lowering: Lowering,
    ref: Value,
    array: Value,
    dims: Sequence[BlockDim] | None,
    written: bool,
    checked: CheckedMemory | None = None,
) -> None:
    """The buffer of an operand: the array's own memory, unless it is padded or written to."""
    shape, dtype = ref.type.shape, ref.type.dtype
    if shape != array.type.shape:
        inner, fill = _inner(array.type.shape, dims or ()), memory.filler(dtype, checked)

        def padded(x: Array) -> Array:
            buffer = np.full(shape, fill, dtype)
            buffer[inner] = x
            return buffer

        fn: Callable[[Array], Array] = padded
    elif written:

        def copied(x: Array) -> Array:
            return np.array(x, dtype, order="C")

        fn = copied
    else:
        # Rank-0 values may be NumPy scalars, which have no memory to view.
        fn = memory.same if shape else np.asarray
    lowering.define("buffer", ref, (array,), fn, Effects(allocates=True))


def _contents(lowering: Lowering, ref: Value, block: Block, shape: tuple[int, ...]) -> Value:
    """The array in an output's buffer, which nobody writes to any more."""
    inner = _inner(shape, block.dims)
    contents = memory.same if shape == ref.ref.shape else lambda buffer: buffer[inner]
    out = ref.ref.contents._replace(shape=shape)
    (value,) = lowering.memory(
        "contents", [ref], [out], contents, Effects(reads=(0,)), view=True
    )
    return value


# -- blocks -----------------------------------------------------------------------------------


def _block(
    lowering: Lowering,
    buffer: Value,
    dims: Sequence[BlockDim],
    starts: Sequence[Value],
    type: RefType,
) -> Value:
    """The ref of one cell's block: a view of the buffer at the index map's results."""
    shape = buffer.type.shape
    fixed, leaves = _place(shape, dims, starts)
    whole = all(
        isinstance(f, slice) and f == slice(0, s) for f, s in zip(fixed, shape, strict=True)
    )
    if whole and buffer.type == type:
        return buffer
    (ref,) = lowering.memory(
        "view", [buffer, *leaves], [type], block_viewer(fixed), PURE, view=True,
        params={"block": tuple(fixed)},
        key=("block", tuple((f.start, f.stop) if isinstance(f, slice) else f for f in fixed)),
    )
    return ref


def _place(
    shape: Sequence[int], dims: Sequence[BlockDim], starts: Sequence[Value]
) -> tuple[list[Any], list[Value]]:
    """A block's place as `block_viewer` wants it, and the operands of the viewer."""
    fixed: list[Any] = []
    leaves: list[Value] = []
    for size, dim, start in zip(shape, dims, starts, strict=False):
        scale = dim.size if dim.kind == "blocked" else 1
        # A block as large as its array lies at 0 wherever the index map points.
        known = 0 if dim.size == size else start.const
        if known is not None:
            at = memory.clamped(int(known) * scale, size, dim.size)
            fixed.append(at if dim.kind == "squeezed" else slice(at, at + dim.size))
        else:
            fixed.append((len(leaves), scale, size, dim.size, dim.kind == "squeezed"))
            leaves.append(start)
    fixed += [slice(0, size) for size in shape[len(dims) :]]
    return fixed, leaves


class _Pipeline:
    """The blocks of a call that are fetched before their cell runs, where cells can see that.

    ``looked_up``: the positions of blocks whose index map reads what cells write. ``aliased``: for
    the positions of inputs, those of the outputs that are the same array.
    """

    def __init__(
        self,
        lowering: Lowering,
        call: PallasCall,
        sizes: Sequence[Value],
        prefetch: Sequence[Value],
        order: CellOrder,
    ) -> None:
        self.lowering, self.call, self.prefetch = lowering, call, prefetch
        self.order = order
        self.looked_up: set[int] = set()
        self.aliased: dict[int, int] = {}
        self._then: dict[int, list[Value]] = {}
        cores = call.cores is not None and call.cores.waits_for_others
        if not call.keeps_scalars or cores or not lookahead.has_several_cells(sizes):
            return
        ahead = {
            at
            for at, block in enumerate(call.blocks[: call.num_inputs])
            if block.buffers > 1 and not block.in_hbm
        }
        written = jax_compat.written_refs(call.jaxpr)
        for at in ahead:
            read = jax_compat.prefetch_read(call.blocks[at].index_map, call.num_prefetch)
            if read & written:
                self.looked_up.add(at)
        if not call.for_device:
            return
        for position, out in call.aliases:
            at, output = position - call.num_prefetch, call.num_inputs + out
            if at in ahead and call.num_prefetch + output in written:
                self.aliased[at] = output

    def turn(
        self, indices: Sequence[Value], starts: list[list[Value]]
    ) -> list[list[Value]]:
        """The places of this cell's blocks, given those that the index maps give now."""
        if not self.looked_up and not self.aliased:
            return starts
        starts = list(starts)
        following = lookahead.next_cell(self.lowering, indices, self.order.turns)
        following = self.order.indices(following)
        for at in sorted(self.looked_up | self.aliased.keys()):
            index_map = self.call.blocks[at].index_map
            self._then[at] = self.lowering.inline(index_map, [*following, *self.prefetch])
            if at in self.looked_up:
                starts[at] = lookahead.turn_block(
                    self.lowering, at, indices, starts[at], self._then[at]
                )
        return starts

    def fetched(
        self,
        at: int,
        indices: Sequence[Value],
        starts: Sequence[Sequence[Value]],
        buffers: Sequence[Value],
        type: RefType,
    ) -> Value | None:
        """The ref of an input's block as it was fetched. None if it is the array's own memory."""
        output = self.aliased.get(at)
        if output is None or buffers[at] is buffers[output]:
            return None
        blocks, shape = self.call.blocks, buffers[at].type.shape
        axes = list(zip(indices, self.order.turns, strict=True))
        dims = blocks[at].dims
        if (dims, starts[at]) == (blocks[output].dims, starts[output]) and _is_own(
            dims, starts[at], shape, axes
        ):
            return None  # no other cell writes to it
        (fixed, leaves), (next_fixed, next_leaves) = [
            _place(shape, dims, place) for place in (starts[at], self._then[at])
        ]
        if fixed != next_fixed:
            raise Unsupported("pallas_call", "a block whose place is known in some cells only")
        return lookahead.fetched_block(
            self.lowering, at, indices, buffers[at], block_viewer(fixed),
            lookahead.BlockPlace(leaves, starts[at]),
            lookahead.BlockPlace(next_leaves, self._then[at]), type,
        )  # fmt: skip
