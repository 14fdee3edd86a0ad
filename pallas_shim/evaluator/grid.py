"""The grid of a pallas_call: its operands as buffers, its blocks as views, its cells as a loop.

Values are those of JAX's interpreter: each operand and result is one buffer, padded to whole blocks
with uninitialised elements, and a cell sees views of it. An operand is copied only if it has to be
padded or if the kernel writes to it. If memory is checked, checked_blocks.py makes the blocks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from pallas_shim import jax_compat
from pallas_shim.evaluator import (
    grid_blocks,
    grid_buffers,
    outside,
    refs,
    watching,
)
from pallas_shim.evaluator.analysis import alias
from pallas_shim.evaluator.cell_order import CellOrder
from pallas_shim.evaluator.checked_blocks import CheckedBlocks
from pallas_shim.evaluator.checks.kernel import KernelChecks
from pallas_shim.evaluator.lower import KernelScope, Lowering
from pallas_shim.evaluator.machine import notes, programs
from pallas_shim.evaluator.program import (
    CELLS,
    PURE,
    ArrayType,
    Effects,
    Instruction,
    Operation,
    RefType,
    Value,
    ref_type,
)
from pallas_shim.evaluator.registry import Unsupported
from pallas_shim.jax_compat import InterpretOptions
from pallas_shim.jax_compat.pallas import CoreFunction, PallasCall


def lower_call(
    lowering: Lowering, call: PallasCall, ins: Sequence[Value], unused: Collection[int] = ()
) -> list[Value]:
    """Emits a pallas_call and returns its results, of which some may be ``unused``."""
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
        Value(t._replace(shape=grid_buffers.buffer_shape(lowering, block)))
        for block, t in zip(call.blocks, block_types, strict=True)
    ]
    scratch_types = ref_types[call.num_prefetch + num_blocks :]
    scratch = [Value(t) for t in scratch_types]
    all_names = jax_compat.argument_names(kernel)
    lowering.names.update(zip([*prefetch, *buffers, *scratch], all_names, strict=False))
    names = all_names[call.num_prefetch :]
    checked_blocks = None
    warnings: list[Callable[[], None]] = []
    grid_buffers.share_aliased(call, buffers)
    waits = call.cores is not None and call.cores.waits_for_others
    # Cores that share the grid, and wait for one another.
    shared_by = call.order is not None and call.order.cores > 1 and lowering.machine.talking
    checks = None
    if lowering.checker is not None:
        shapes = grid_buffers.array_shapes(lowering, call)
        checks = KernelChecks(
            lowering.checker, call, all_names, shapes, sizes, shared_by, unused
        )
    watch = lowering.watch
    if watch is not None:
        watched = _watched(lowering, call, all_names, ref_types)
    if call.checked is not None:
        checked_blocks = CheckedBlocks(lowering, call, call.checked, sizes, buffers, block_types)

    def cell(indices: Sequence[Value]) -> None:
        # Cores that wait for one another are programs of one cell each.
        seen_at: Sequence[Value] = () if waits else indices
        seen_of: Sequence[Value] = () if waits else sizes
        record(lowering, indices, call.cores, cell_order.core)
        cell_order.begin(scratch)
        cell_start = len(lowering.body)
        if checks is not None:
            checks.begin_cell(indices, prefetch)
        starts_start = len(lowering.body)
        starts = [lowering.inline(b.index_map, [*indices, *prefetch]) for b in call.blocks]
        starts = pipeline.turn(cell_order.turn, starts)
        if call.checked is None:
            warnings.extend(outside.warnings_of_blocks(
                call, names, grid_buffers.array_shapes(lowering, call), indices, sizes, starts,
                lowering.body[starts_start:],
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
            blocks_written = alias.written(body, blocks)
            checked_blocks.define(blocks, indices, starts, blocks_written, cell_order.core())
            lowering.body.extend(body)
            return
        views = [
            pipeline.fetched(at, cell_order.turn, starts, buffers, type)
            or grid_blocks.block_ref(lowering, buffer, block.dims, start, type)
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
            if changed and checks is not None:
                checks.keeps_scalars()
                changed = set()
            with lowering.block() as first:
                for ref in changed:
                    refs.store(lowering, ref, (), (), arrays[prefetch.index(ref)])
            lowering.body[cell_start:cell_start] = first

    cell_order = CellOrder(lowering, call, sizes)
    pipeline = grid_blocks.Pipeline(lowering, call, sizes, prefetch, cell_order)
    local = [i for i in range(len(call.grid)) if i not in call.vmapped_dims]
    # A watch tells operands apart by their memory, even if the caller passed one array twice.
    apart = watch is not None

    def lowered() -> list[Instruction]:
        return lower_cells(
            lowering, call.name, sizes, call.axis_names, local, cell, call.checked,
            call.for_device, scratch if waits else None, cell_order.enter, cell_order.turns,
        )  # fmt: skip

    def part() -> None:
        """The cells that one core runs, with its own memory."""
        cells = lowered()
        own(cells)
        run_checked(cells)
        if checked_blocks is not None:
            checked_blocks.write_back()
        programs.emit_exit(lowering, list(filter(_is_semaphore, scratch)))
        if checks is not None:
            checks.end()

    def run_checked(cells: list[Instruction]) -> None:
        """Emits the cells of one program, with their checks."""
        if checks is not None:
            cells = checks.finish(cells)
            checks.enter()
        programs.emit_entry(lowering)
        lowering.body.extend(cells)

    def own(cells: Sequence[Instruction]) -> None:
        """Emits the memory of a core."""
        written = alias.written(cells, prefetch)
        for ref, array in zip(prefetch, arrays, strict=False):
            grid_buffers.define_operand(lowering, ref, array, None, apart or ref in written)
        for ref in [] if waits else scratch:
            grid_buffers.allocate(lowering, ref, call.checked)
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
        grid_buffers.define_operand(lowering, ref, array, block.dims, copied, call.checked)
    aliases = {out: arrays[position] for position, out in call.aliases}
    for position, ref in enumerate(outputs):
        dims = call.blocks[call.num_inputs + position].dims
        if ref in buffers[: call.num_inputs]:
            continue
        if position in aliases:
            grid_buffers.define_operand(lowering, ref, aliases[position], dims, True, call.checked)
        else:
            grid_buffers.allocate(lowering, ref, call.checked)
    if not shared_by:
        own(cells)
    for warn in warnings:
        _emit_warning(lowering, warn)
    if not shared_by:
        run_checked(cells)
    else:
        if checks is not None:
            checks.enter_programs()
        programs.emit_entry(lowering)
        lowering.body.extend(cells)
    semaphores = [] if waits or shared_by else list(filter(_is_semaphore, scratch))
    programs.emit_exit(lowering, semaphores)
    if checks is not None and not shared_by:
        checks.end()
    if checked_blocks is not None and not shared_by:
        checked_blocks.write_back()
    if watch is not None:
        watching.emit_left(lowering, watch, watched, buffers)
    results = [
        grid_buffers.contents(lowering, ref, block, grid_buffers.array_shape(lowering, block))
        for ref, block in zip(
            buffers[call.num_inputs :], call.blocks[call.num_inputs :], strict=True
        )
    ]
    if checks is not None:
        results = list(map(checks.output, range(len(results)), results))
        checks.leave()
    return results


def record(
    lowering: Lowering,
    indices: Sequence[Value],
    cores: CoreFunction | None,
    core_of_cell: Callable[[], Value] | None = None,
) -> None:
    """Emits, at the start of a cell, the call of the user's recorder, if there is one. Each cell of
    a mesh of ``cores`` is a core. JAX knows only one where these are SparseCore's."""
    recorder = None if lowering.checked is None else lowering.checked.recorder
    if recorder is None:
        return
    if cores is not None:
        core = lowering.const(np.int32(0)) if cores.of_sparse_core else indices[0]
    else:
        assert core_of_cell is not None
        core = core_of_cell()

    def tell(core: Any, *indices: Any) -> tuple[()]:
        recorder(tuple(map(np.int32, indices)), np.int32(core))
        return ()

    lowering.memory("record_cell", [core, *indices], [], tell, Effects(io=True))


def _watched(
    lowering: Lowering, call: PallasCall, names: Sequence[str], ref_types: Sequence[RefType]
) -> watching.Kernel:
    shapes = grid_buffers.array_shapes(lowering, call)
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
    checked: InterpretOptions | None,
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
        if of_each_core is None:
            notes.note_cell(lowering, indices)
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
            grid_buffers.allocate(lowering, ref, checked)
    return first + cells


def _cores(
    lowering: Lowering,
    names: Sequence[Any],
    sizes: Sequence[Value],
    own: Sequence[Value],
    shared: dict[Any, Value],
    in_kernel: Callable[[Sequence[Value]], Sequence[Value]],
    checked: InterpretOptions | None,
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
                grid_buffers.allocate(lowering, ref, checked)
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
            if (given.dims, starts[i]) == (result.dims, starts[o]) and grid_blocks.is_own(
                given.dims, starts[i], buffers[i].type.shape, axes
            ):
                continue  # no other cell reads it
        else:
            continue
        block, view = call.blocks[source], views[source]
        mirror = grid_blocks.block_ref(
            lowering, buffers[target], block.dims, starts[source], view.ref
        )
        value = refs.load(lowering, view, (), (), view.ref.contents)
        refs.store(lowering, mirror, (), (), value)
