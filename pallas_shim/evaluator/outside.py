"""Finds blocks that lie wholly outside their arrays, if that can be known before a kernel runs.

Unless memory is checked, such a block is moved inside its array, as in JAX's interpreter. A TPU
copies from or to the memory that lies outside instead.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np

from pallas_shim.evaluator.analysis.cell_tables import table_of, tables
from pallas_shim.evaluator.machine import faults
from pallas_shim.evaluator.program import Instruction, Region, Value
from pallas_shim.jax_compat.pallas import Block, PallasCall

# Larger grids aren't examined: that would take too long.
_MOST_CELLS = 1 << 18


def warnings_of_blocks(
    call: PallasCall,
    names: Sequence[str],
    shapes: Sequence[tuple[int, ...]],
    indices: Sequence[Value],
    sizes: Sequence[Value],
    starts: Sequence[Sequence[Value]],
    body: Sequence[Instruction],
) -> list[Callable[[], None]]:
    """Returns what warns of each block that some cell has wholly outside its array.

    The arrays have the given shapes. ``body`` computes the ``starts`` from the grid's ``indices``.
    """
    found: list[Callable[[], None]] = []
    if any(size.const is None for size in sizes):
        return found
    bounds = [int(size.const) for size in sizes if size.const is not None]
    if not 0 < math.prod(bounds) <= _MOST_CELLS or not all(map(_is_plain, body)):
        return found
    known = tables(bounds, Region(tuple(indices), tuple(body), ()), {}, {})
    for at, (block, shape, of_block) in enumerate(zip(call.blocks, shapes, starts, strict=True)):
        for axis, (dim, start) in enumerate(zip(block.dims, of_block, strict=False)):
            table = table_of(start, known, len(bounds))
            if table is None or dim.padding != (0, 0):
                continue
            first = table.astype(np.int64) * (dim.size if dim.kind == "blocked" else 1)
            outside = (first >= shape[axis]) | (first + dim.size <= 0)
            if shape[axis] and dim.size and outside.any():
                cell = tuple(int(i) for i in np.argwhere(np.broadcast_to(outside, bounds))[0])
                name = names[at] if at < len(names) else block.origin
                number = int(table[outside].flat[0])
                found.append(_warning(call, block, name, shape, axis, cell, number))
                break
    return found


def _is_plain(instruction: Instruction) -> bool:
    return not instruction.regions


def _warning(
    call: PallasCall,
    block: Block,
    name: str,
    shape: tuple[int, ...],
    axis: int,
    cell: tuple[int, ...],
    number: int,
) -> Callable[[], None]:
    dim = block.dims[axis]
    sizes = tuple(d.size for d in block.dims)
    message = (
        f"the Pallas kernel {call.name} has, in cell {cell} of its grid, a block of {name} wholly "
        f"outside the array: along dimension {axis} its index map returns {number}, where the "
        f"array of shape {shape} is cut into blocks of {sizes}"
    )
    if dim.kind == "blocked" and dim.size > 1 and 0 <= number <= shape[axis] - dim.size:
        message += ". Index maps return block numbers, not elements"
    key = (call.name, call.source, name)
    return functools.partial(faults.warn_once, key, message, faults.BlockWarning, call.source)
