"""Reductions: accumulates into memory after the rest of each round has run.

The rounds of a loop run in order, so they may do one thing that cells of a grid may not:
*accumulate* into a part of a buffer, ``ref[at] = f(ref[at], value)``, wherever `at` leads. Suppose
that only this load and this store touch the buffer, only `f` uses the load's result, and only the
store uses `f`'s. Then no `at` or `value` depends on the buffer. So both are computed for many
rounds first, and then accumulated round by round, in order, with the same rounding at each.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from pallas_shim.evaluator import memory
from pallas_shim.evaluator.analysis.alias import load_address, store_address
from pallas_shim.evaluator.analysis.dependence import Footprints
from pallas_shim.evaluator.passes.rewrite import is_ufunc
from pallas_shim.evaluator.program import Instruction, Operation, Region, Value
from pallas_shim.jax_compat.state import Index, Slice

# The functions that accumulate numbers of any kind, and those that do integers.
_OF_NUMBERS = (np.add, np.subtract, np.multiply)
_OF_INTEGERS = (np.minimum, np.maximum, np.bitwise_and, np.bitwise_or, np.bitwise_xor)
# Functions whose operands may come in either order. (Of two NaNs, the first is the result.)
_COMMUTING = (np.add, np.multiply, *_OF_INTEGERS)


class Accumulation(NamedTuple):
    """An accumulation into a part of a buffer. ``replaced``: the value that does it in a round."""

    root: Value
    ufunc: Any
    value: Value
    replaced: tuple[Value, Value]


def accumulations(region: Region, footprints: Footprints) -> dict[Value, Accumulation]:
    """The accumulations of a loop's rounds, by the value that is stored."""
    uses = Counter(region.uses())
    made = {out: instruction for instruction in region.body for out in instruction.outs}
    found = {}
    for store in region.body:
        address = store_address(store)
        update = made.get(store.ins[1]) if address is not None else None
        if update is None or not _accumulates(update.operation):
            continue
        for old, value in _orders(update):
            load = made.get(old)
            root = footprints.aliases.root(store.ins[0])
            if (
                load is not None
                and load_address(load) == address
                and old.type == store.ins[1].type
                and uses[old] == uses[store.ins[1]] == 1
                and len(footprints.accesses[root]) == 2
                and _has_places(address[0])
            ):
                found[store.ins[1]] = Accumulation(
                    root, update.operation.fn, value, (old, store.ins[1])
                )
                break
    return found


def _accumulates(operation: Operation) -> bool:
    if not is_ufunc(operation) or len(operation.ins) != 2:
        return False
    if len({type.dtype for type in (*operation.ins, *operation.outs)}) > 1:
        return False
    kind = operation.outs[0].dtype.kind
    return operation.fn in _OF_NUMBERS and kind in "iuf" or (
        operation.fn in _OF_INTEGERS and kind in "iub"
    )


def _orders(update: Instruction) -> list[tuple[Value, Value]]:
    """The pairs of operands that may be the old value and the value combined with it."""
    first, second = update.ins
    exact = update.operation.outs[0].dtype.kind != "f"
    commutes = exact and update.operation.fn in _COMMUTING
    return [(first, second), (second, first)] if commutes else [(first, second)]


def _has_places(path: memory.Path) -> bool:
    """Whether a path leads to elements, or to slices that are known."""
    if not path:
        return True
    (first, *rest) = path
    return not rest and isinstance(first, Index) and all(
        not isinstance(at, Slice) or (at.stride > 0 and not isinstance(at.start, memory.Dynamic))
        for at in first.dims
    )
