"""Blocks that a pipeline fetches before the cell runs that reads them.

A TPU fetches the block of the next cell while a cell runs, if the block has two buffers. It is seen
only if cells change what is fetched: the scalar-prefetch operands from which an index map computes
the block's place, or, through an aliased output, the array itself. A block that stays where it is
isn't fetched again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pallas_shim.evaluator.machine.programs import NUMBER
from pallas_shim.evaluator.program import PURE, Effects, RefType, Value

if TYPE_CHECKING:
    from pallas_shim.evaluator.lower import Lowering


def next_cell(
    lowering: Lowering, indices: Sequence[Value], sizes: Sequence[Value]
) -> list[Value]:
    """The indices of the cell after this one. The last cell has none, and gives its own."""
    count = len(indices)

    def following(*values: Any) -> Any:
        index, bounds = list(values[:count]), values[count:]
        for axis in reversed(range(count)):
            index[axis] = np.int32(index[axis] + 1)
            if index[axis] < bounds[axis]:
                return tuple(index)
            index[axis] = np.int32(0)
        return values[:count]

    ins = [*indices, *sizes]
    if count == 1:
        return list(
            lowering.memory("next_cell", ins, [NUMBER], lambda *v: following(*v)[0], PURE)
        )
    return list(lowering.memory("next_cell", ins, [NUMBER] * count, following, PURE))


def turn_block(
    lowering: Lowering,
    position: int,
    indices: Sequence[Value],
    own: Sequence[Value],
    then: Sequence[Value],
) -> list[Value]:
    """The place of a block, computed before the cell before this one ran.

    ``own`` and ``then``: what the index map gives for this cell and for the next one before this
    cell runs. ``position`` tells the block from others.
    """
    cell, count = len(indices), len(own)
    noted = lowering.shared(("place", position), _numbers(count), "pallas_call")

    def turn(noted: np.ndarray, *values: Any) -> Any:
        now = noted[:count].copy() if any(values[:cell]) else values[cell : cell + count]
        noted[:count] = values[cell + count :]
        return np.int32(now[0]) if count == 1 else tuple(map(np.int32, now))

    return list(
        lowering.memory(
            "turn_block", [noted, *indices, *own, *then], [NUMBER] * count, turn,
            Effects(reads=(0,), writes=(0,)),
        )
    )  # fmt: skip


class BlockPlace(NamedTuple):
    """Where a block lies: the operands of its viewer, and the results of the index map."""

    leaves: Sequence[Value]
    starts: Sequence[Value]


def fetched_block(
    lowering: Lowering,
    position: int,
    indices: Sequence[Value],
    array: Value,
    viewer: Callable[..., np.ndarray],
    now: BlockPlace,
    then: BlockPlace,
    type: RefType,
) -> Value:
    """The ref of one of two buffers, which holds the block that was fetched for this cell.

    Also fetches the block of the next cell. ``viewer`` makes a view of ``array``. ``position``
    tells the block from others.
    """
    buffers = lowering.shared(
        ("fetched", position), type._replace(shape=(2, *type.shape)), "pallas_call"
    )
    cell, given, count = len(indices), len(now.leaves), len(now.starts)
    # The place of the block in each buffer, and which of them the next cell reads.
    noted = lowering.shared(("buffers", position), _numbers(2 * count + 1), "pallas_call")
    cuts = list(itertools.accumulate([cell, given, count, given, count]))

    def fetch(buffers: Any, noted: Any, array: Any, *values: Any) -> Any:
        index, leaves, starts, next_leaves, next_starts = (
            values[a:b] for a, b in zip([0, *cuts], cuts, strict=False)
        )
        at = noted[: 2 * count].reshape(2, count)
        current = int(noted[-1])
        if not any(index):
            current = 0
            buffers[0] = viewer(array, *leaves)
            at[0] = starts
        ahead = current
        if tuple(at[current]) != tuple(next_starts):
            ahead = 1 - current
            buffers[ahead] = viewer(array, *next_leaves)
            at[ahead] = next_starts
        noted[-1] = ahead
        return np.int32(current)

    (which,) = lowering.memory(
        "fetch_block",
        [buffers, noted, array, *indices, *now.leaves, *now.starts, *then.leaves, *then.starts],
        [NUMBER], fetch, Effects(reads=(0, 1, 2), writes=(0, 1)),
    )  # fmt: skip
    (ref,) = lowering.memory(
        "fetched_block", [buffers, which], [type], lambda buffers, which: buffers[which], PURE,
        view=True, key="fetched_block",
    )  # fmt: skip
    return ref


def _numbers(count: int) -> RefType:
    return RefType((max(count, 1),), np.dtype(np.int32), "smem")


def has_several_cells(sizes: Sequence[Value]) -> bool:
    return any(s.const is None or int(s.const) > 1 for s in sizes)
