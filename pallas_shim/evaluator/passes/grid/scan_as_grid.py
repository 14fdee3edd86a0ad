"""Counting loops: turns a scan that carries only counters into a grid of one axis.

Its rounds are cells, and may run together under the same conditions as those of a grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from pallas_shim.evaluator.analysis import induction
from pallas_shim.evaluator.analysis.cell_tables import Table
from pallas_shim.evaluator.program import (
    PURE,
    ArrayType,
    Instruction,
    Operation,
    Region,
    Value,
    make_instruction,
)
from pallas_shim.evaluator.specialise import specialise

# Longer loops, and those with more instructions, are not looked at.
_MOST_ROUNDS = 1 << 20
_LARGEST_BODY = 1 << 10


class Loop(NamedTuple):
    """A loop as a grid. ``known``: its counters; ``after``: their final values."""

    grid: Instruction
    known: Mapping[Value, Table]
    after: tuple[Instruction, ...]


def as_grid(scan: Instruction) -> Loop | None:
    """The loop over cells that does the same as a scan. None unless the scan carries only
    counters."""
    params, (region,) = scan.operation.params, scan.regions
    length, count = params["length"], params["num_carry"]
    if not (len(scan.ins) == len(scan.outs) == count and 1 < length <= _MOST_ROUNDS):
        return None
    if len(region.body) > _LARGEST_BODY:
        return None
    counters = induction.of_scan(scan)
    known: dict[Value, Table] = {}
    after = []
    for param, out in zip(region.params, scan.outs, strict=True):
        counter = counters.get(param)
        if counter is None or counter.start.const is None:
            return None
        dtype = param.type.dtype
        step = np.asarray(counter.step, dtype)
        # Wraps around, as the additions would.
        counts = counter.start.const + np.arange(length + 1).astype(dtype) * step
        known[param] = counts[:-1]
        last = specialise("lookup", (), (out.type,), {"table": counts[-1:].reshape(())}, False)
        after.append(make_instruction((last, (), (out,), (), scan.source)))
    size = Value(ArrayType((), np.dtype(np.int32)), np.asarray(length, np.int32))
    operation = Operation("grid", {"name": "loop"}, (size.type,), (), None, PURE, multiple=True)
    rounds_of = Region((Value(size.type),), region.body, ())
    grid = make_instruction((operation, (size,), (), (rounds_of,), scan.source))
    return Loop(grid, known, tuple(after))
