"""Cell tables: scalars that depend on the grid indices only, known for all cells before they run.

A *table* is an array with one dimension for each axis of the grid. The dimension has size 1 if the
scalar doesn't depend on that axis. The scalar's own instructions run on all indices at once and
make the table. So every computation of an index map is known exactly, including look-ups in a
constant that nothing writes to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from pallas_shim.evaluator.analysis.alias import AliasAnalysis
from pallas_shim.evaluator.batching_rules import over_stack
from pallas_shim.evaluator.blocks import clamped
from pallas_shim.evaluator.floating import as_xla
from pallas_shim.evaluator.memory import Dynamic
from pallas_shim.evaluator.program import (
    PURE,
    ArrayType,
    Instruction,
    Operation,
    Program,
    Region,
    Value,
)
from pallas_shim.evaluator.registry import Stack
from pallas_shim.jax_compat.state import Index

# Scalars of more cells than this are not computed beforehand.
_LARGEST_TABLE = 1 << 20

Table = np.ndarray


def constants(program: Program, aliases: AliasAnalysis) -> dict[Value, np.ndarray]:
    """The contents of buffers of constants that nothing writes to."""
    held, written = {}, set()
    for instruction in program.top.walk():
        operation, ins, outs, _, _ = instruction
        if operation.name == "buffer" and ins and ins[0].const is not None:
            if ins[0].const.shape == outs[0].ref.shape:  # no padding
                held[outs[0]] = ins[0].const
        if operation.effects.writes:
            written.update(aliases.roots(instruction, operation.effects.writes))
    return {root: array for root, array in held.items() if root not in written}


def tables(
    sizes: Sequence[int],
    region: Region,
    given: Mapping[Value, Table],
    held: Mapping[Value, np.ndarray],
) -> Mapping[Value, Table]:
    """The tables of all scalars in a grid's region that have one, with those that are given.
    ``held``: the contents of the buffers that are known."""
    known = dict(given)
    for axis, (index, size) in enumerate(zip(region.params, sizes, strict=True)):
        line = np.arange(size, dtype=index.type.dtype)
        known[index] = line.reshape([-1 if a == axis else 1 for a in range(len(sizes))])
    as_xla(_learn_all, known, len(sizes), region, held)
    return known


def _learn_all(
    known: dict[Value, Table], axes: int, region: Region, held: Mapping[Value, np.ndarray]
) -> None:
    for instruction in region.walk():
        if instruction.operation.name == "get" and instruction.ins[0] in held:
            _look_up(known, axes, instruction, held[instruction.ins[0]])
        else:
            _learn(known, axes, instruction)


def table_of(value: Value, known: Mapping[Value, Table], axes: int) -> Table | None:
    """A scalar's table, also of a constant; None if it isn't known."""
    if value.const is not None and value.type.shape == ():
        return value.const.reshape((1,) * axes)
    return known.get(value)


def _learn(known: dict[Value, Table], axes: int, instruction: Instruction) -> None:
    operation, ins, outs, regions, _ = instruction
    if regions or not ins or not _is_scalar(operation):
        return
    operands = []
    for value in ins:
        table = table_of(value, known, axes)
        if table is None:
            return
        operands.append(table)
    shape = np.broadcast_shapes(*[table.shape for table in operands])
    size = math.prod(shape)
    if size > _LARGEST_TABLE:
        return
    types = tuple([ArrayType((), type.dtype) for type in operation.ins])
    batched = over_stack(operation, Stack(size, types, (False,) * len(ins)))
    if batched is None or batched.fn is None:
        return
    flat = [np.ascontiguousarray(np.broadcast_to(t, shape)).reshape(-1) for t in operands]
    try:
        result = batched.fn(*flat)
    except Exception:
        return  # it may never be reached; if it is, the run tells where it failed
    known[outs[0]] = _narrowed(np.asarray(result).reshape(shape))


def _look_up(
    known: dict[Value, Table], axes: int, load: Instruction, array: np.ndarray
) -> None:
    """Learns a scalar that is loaded from a constant."""
    (_, *leaves), (out,), path = load.ins, load.outs, load.operation.params["path"]
    if type(out.type) is not ArrayType or out.type.shape or len(path) != 1:
        return
    if not isinstance(path[0], Index):
        return
    places = []
    for dim, at in zip(array.shape, path[0].dims, strict=True):
        if isinstance(at, Dynamic):
            table = table_of(leaves[at.leaf], known, axes)
            if table is None:
                return
            places.append(clamped(table, 1, dim, 1))
        else:
            places.append(np.full((1,) * axes, at))
    if math.prod(np.broadcast_shapes(*[place.shape for place in places])) <= _LARGEST_TABLE:
        known[out] = _narrowed(array[tuple(places)])


def _narrowed(table: Table) -> Table:
    """A table without the axes along which it turns out to be the same: a bound that the last
    block only would exceed, say. Of floats, equal ones may differ in the sign of zero."""
    if table.dtype.kind not in "iub":
        return table
    for axis, size in enumerate(table.shape):
        first = table[(slice(None),) * axis + (slice(1),)]
        if size > 1 and np.array_equal(table, np.broadcast_to(first, table.shape)):
            table = first
    return table


def _is_scalar(operation: Operation) -> bool:
    return (
        operation.effects is PURE
        and len(operation.outs) == 1
        and not operation.multiple
        and all(type(t) is ArrayType and t.shape == () for t in (*operation.ins, *operation.outs))
    )
