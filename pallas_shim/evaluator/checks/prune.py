"""Leaves out checks that are proven before a kernel runs, and those that nothing needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pallas_shim.evaluator.analysis.cell_tables import table_of, tables
from pallas_shim.evaluator.program import Instruction, Region, Value

_MOST_CELLS = 1 << 20
OURS = ("check", "check_state")


def _filtered(
    body: Sequence[Instruction], stays: Callable[[Instruction], bool]
) -> list[Instruction]:
    """The instructions, also those inside others, that stay."""
    kept = []
    for instruction in body:
        if instruction.name in OURS and not stays(instruction):
            continue
        if instruction.regions:
            regions = tuple(
                Region(region.params, tuple(_filtered(region.body, stays)), region.results)
                for region in instruction.regions
            )
            instruction = instruction._replace(regions=regions)
        kept.append(instruction)
    return kept


def unneeded(body: Sequence[Instruction]) -> list[Instruction]:
    """Without what keeps the aspects of memory at which no check looks."""

    def stays(instruction: Instruction) -> bool:
        of = instruction.operation.params["of"]
        return of is None or of.needed

    return _filtered(body, stays)


def has_checks(body: Sequence[Instruction]) -> bool:
    """Whether any check is left beside those that only note the cell."""
    region = Region((), tuple(body), ())
    return any(
        instruction.name in OURS and instruction.operation.params["checks"] != "cell"
        for instruction in region.walk()
    )


def without_cell(body: Sequence[Instruction]) -> list[Instruction]:
    return _filtered(body, lambda i: i.operation.params["checks"] != "cell")


def proven(cells: Sequence[Instruction]) -> list[Instruction]:
    """Without checks of bounds that the indices of no cell of the grid break."""
    return [_proven(i) if i.name == "grid" and _checks_bounds(i) else i for i in cells]


def _proven(grid: Instruction) -> Instruction:
    (region,) = grid.regions
    bounds = [int(v.const) for v in grid.ins if v.const is not None]
    if len(bounds) != len(grid.ins) or not 0 < math.prod(bounds) <= _MOST_CELLS:
        return grid
    known = tables(bounds, region, {}, {})
    (checked,) = _filtered([grid], lambda i: not _holds(i, known, len(bounds)))
    return checked


def _checks_bounds(grid: Instruction) -> bool:
    return any(
        i.name == "check" and i.operation.params["checks"] == "bounds"
        for i in grid.regions[0].walk()
    )


def _holds(instruction: Instruction, known: Mapping[Value, Any], axes: int) -> bool:
    """Whether a check of bounds is proven by the tables of its leaves."""
    params = instruction.operation.params
    if params["checks"] != "bounds" or params["place"] is None:
        return False
    spans = params["place"].spans()
    if spans is None:
        return False
    leaves = instruction.ins[1:]
    for leaf, most in spans:
        table = table_of(leaves[leaf], known, axes)
        if table is None or (table < 0).any() or (table > most).any():
            return False
    return True
