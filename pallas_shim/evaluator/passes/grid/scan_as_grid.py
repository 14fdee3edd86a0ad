"""Loops that count: a scan that carries only counters is a grid of one axis.

Its rounds are cells, and may run at once under the same conditions as a grid's, with what a
round of such a loop knows of itself: its counters.

One thing more is allowed than cells of a grid may do, since rounds of one axis run in order:
a part of a buffer may be *accumulated* into, ``ref[at] = f(ref[at], value)``, wherever `at`
leads. If the buffer is touched by that load and that store only, and the load's result by `f`
only and that by the store only, then neither `at` nor `value` of any round depend on what the
buffer holds. So they can be computed for many rounds first, and the accumulation be done for
these one after the other, in their order, with the same rounding at each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from pallas_shim.evaluator import memory
from pallas_shim.evaluator.analysis.alias import load_address, store_address
from pallas_shim.evaluator.analysis.cell_tables import Table
from pallas_shim.evaluator.analysis.dependence import Footprints
from pallas_shim.evaluator.lower import specialise
from pallas_shim.evaluator.passes.rewrite import is_ufunc
from pallas_shim.evaluator.program import (
    PURE,
    ArrayType,
    Instruction,
    Operation,
    Region,
    Value,
    make_instruction,
)
from pallas_shim.jax_compat.state import Index, Slice

# The functions that accumulate numbers of any kind, and those that do integers.
_OF_NUMBERS = (np.add, np.subtract, np.multiply)
_OF_INTEGERS = (np.minimum, np.maximum, np.bitwise_and, np.bitwise_or, np.bitwise_xor)
# Those whose operands may come in either order. (Of two NaNs the first is the result.)
_COMMUTING = (np.add, np.multiply, *_OF_INTEGERS)
# Longer loops, and those with more instructions, are not looked at.
_MOST_ROUNDS = 1 << 20
_LARGEST_BODY = 1 << 10


class Loop(NamedTuple):
    """A loop as a grid. ``known``: its counters; ``after``: what it leaves them at."""

    grid: Instruction
    known: Mapping[Value, Table]
    after: tuple[Instruction, ...]


def as_grid(scan: Instruction) -> Loop | None:
    """What does the same as a scan, None unless it carries only counters."""
    params, (region,) = scan.operation.params, scan.regions
    length, count = params["length"], params["num_carry"]
    if not (len(scan.ins) == len(scan.outs) == count and 1 < length <= _MOST_ROUNDS):
        return None
    if len(region.body) > _LARGEST_BODY:
        return None
    steps = {
        out: i.ins for i in region.body if i.name == "add" and not i.regions for out in i.outs
    }
    known: dict[Value, Table] = {}
    after = []
    for start, param, result, out in zip(
        scan.ins, region.params, region.results, scan.outs, strict=True
    ):
        step = next((v for v in steps.get(result, ()) if v is not param), None)
        if start.const is None or step is None or step.const is None:
            return None
        if param not in steps[result] or param.type != step.type or param.type.shape:
            return None
        if param.type.dtype.kind not in "iu":
            return None
        rounds = np.arange(length + 1).astype(param.type.dtype)
        counts = start.const + rounds * step.const  # wraps around, as the additions would
        known[param] = counts[:-1]
        last = specialise("lookup", (), (out.type,), {"table": counts[-1:].reshape(())}, False)
        after.append(make_instruction((last, (), (out,), (), scan.source)))
    size = Value(ArrayType((), np.dtype(np.int32)), np.asarray(length, np.int32))
    operation = Operation("grid", {"name": "loop"}, (size.type,), (), None, PURE, multiple=True)
    rounds_of = Region((Value(size.type),), region.body, ())
    grid = make_instruction((operation, (size,), (), (rounds_of,), scan.source))
    return Loop(grid, known, tuple(after))


class Accumulation(NamedTuple):
    """What is done to a part of a buffer. ``replaced``: the value that does it in a round."""

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
    """What may be the old value and what goes on top of it."""
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
