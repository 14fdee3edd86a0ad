"""Which grids several threads may share: those of which no cells that differ along the first axis
touch memory that either writes to, and that pay for a second thread."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from pallas_shim.evaluator.analysis.alias import AliasAnalysis
from pallas_shim.evaluator.analysis.cell_tables import constants, tables
from pallas_shim.evaluator.analysis.dependence import Footprints
from pallas_shim.evaluator.codegen.native import functions
from pallas_shim.evaluator.codegen.native.threads import worthwhile
from pallas_shim.evaluator.program import Instruction, Program, Region

# Grids of more cells times instructions than this are not looked at.
_LARGEST_PROOF = 1 << 22


class Unshareable(Exception):
    """A part of the grid can't be run by several threads."""

    def __init__(self, grid: Instruction):
        super().__init__(grid)
        self.grid = grid


class Sharing:
    """Answers for one program. ``refused``: grids that turned out to be unshareable."""

    def __init__(self, program: Program, refused: Sequence[Instruction] = ()):
        self._program, self._refused = program, refused

    @functools.cached_property
    def _aliases(self) -> AliasAnalysis:
        return AliasAnalysis(self._program)

    def threads(self, grid: Instruction, rounds: float) -> int:
        """How many threads pay for a grid, which runs so many times: 1 if they may not share it."""
        sizes = [int(size.const) for size in grid.ins if size.const is not None]
        if len(sizes) < len(grid.ins) or not sizes or sizes[0] < 2 or grid in self._refused:
            return 1
        (region,) = grid.regions
        cells = math.prod(sizes)
        if not 0 < cells * sum(1 for _ in region.walk()) <= _LARGEST_PROOF:
            return 1
        most = min(worthwhile(cells, 0, *_work(region)), sizes[0])
        return most if most > 1 and self._are_apart(region, sizes) else 1

    def _are_apart(self, region: Region, sizes: Sequence[int]) -> bool:
        for instruction in region.walk():
            types = (*instruction.operation.ins, *instruction.operation.outs)
            if instruction.operation.effects.io or any(t.key_ndim or 0 in t.shape for t in types):
                return False
        known = tables(sizes, region, {}, constants(self._program, self._aliases))
        footprints = Footprints(self._aliases, len(sizes), region, known)
        return not any(footprints.apart(root, (0,)) for root in footprints.written)


def _work(region: Region, times: float = 1.0) -> tuple[int, int]:
    """About how many operations on elements, and functions of elements, a run of a region is."""
    operations = taken = 0.0
    for operation, ins, outs, regions, _ in region.body:
        if regions:
            often = times * operation.params.get("length", 1)
            for inner in regions:
                some, more = _work(inner, often)
                operations, taken = operations + some, taken + more
        elif operation.fn is not None and not operation.view:
            shapes = [value.type.shape for value in (*outs, *ins)]
            elements = times * max(map(math.prod, shapes), default=1)
            if operation.name in functions.FUNCTIONS:
                taken += elements
            else:
                operations += elements
    return int(operations), int(taken)
