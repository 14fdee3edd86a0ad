"""Privatisation: proves that cells read only elements of a buffer that they themselves have stored.

Each of the cells that run together can then have its own copy of the buffer. A mask over the buffer
follows the stored elements along a cell's instructions. A store at a known place adds the elements
that it covers; a store that may not happen adds none. Every read must lie within the mask. If cells
run in order, and the grid visits all of them before any other, a cell also finds the elements that
the first of them has stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pallas_shim.evaluator import memory
from pallas_shim.evaluator.analysis.alias import AliasAnalysis
from pallas_shim.evaluator.program import PURE, Instruction, Region, Value
from pallas_shim.jax_compat.state import Index, Slice

# Which branch a switch takes, None if that isn't known.
Taken = Callable[[Instruction], int | None]

# Buffers of more elements than this are not followed.
_LARGEST = 1 << 22


def carries_nothing(
    aliases: AliasAnalysis, root: Value, region: Region, first: Taken | None, any_cell: Taken
) -> bool:
    """Whether each run of a region reads only those elements of a buffer that it stored itself.

    Args:
      first: what is known of the switches in the first run, whose stores the others find;
        None if each run counts for itself.
      any_cell: what is known of them in every run.
    """
    shape = root.ref.shape
    if math.prod(shape) > _LARGEST:
        return False
    stored = np.zeros(shape, np.bool_)
    try:
        if first is not None:
            _StoredElements(aliases, root, first).region(region, stored)
        _StoredElements(aliases, root, any_cell).region(region, stored)
    except _ReadsMore:
        return False
    return True


class _ReadsMore(Exception):
    """Something is read that may not have been stored to."""


class _StoredElements:
    def __init__(self, aliases: AliasAnalysis, root: Value, taken: Taken):
        self.aliases = aliases
        self.root = root
        self.taken = taken

    def region(self, region: Region, stored: np.ndarray) -> None:
        """Adds to ``stored`` what a run of a region is sure to store to.

        Raises:
          _ReadsMore: it may read something else.
        """
        for instruction in region.body:
            if instruction.regions:
                self.structured(instruction, stored)
            elif instruction.operation.effects is not PURE:
                self.access(instruction, stored)

    def structured(self, instruction: Instruction, stored: np.ndarray) -> None:
        within = self.aliases.within(instruction)
        if self.root not in within.reads and self.root not in within.writes:
            return
        if instruction.name == "scan":
            # Each round finds the stores of the earlier ones, so the first round may read least.
            if instruction.operation.params["length"] > 0:
                self.region(instruction.regions[0], stored)
            return
        regions: Sequence[Region] = instruction.regions
        branch = self.taken(instruction) if instruction.name == "switch" else None
        if branch is not None:
            self.region(regions[branch], stored)
            return
        after = []
        for region in regions:
            after.append(stored.copy())
            self.region(region, after[-1])
        if instruction.name == "switch":
            stored |= np.logical_and.reduce(after)

    def access(self, instruction: Instruction, stored: np.ndarray) -> None:
        operation, ins, _, _, _ = instruction
        effects = operation.effects
        part = None
        if operation.name in ("get", "store") and ins[0] is self.root:
            part = _part(stored, operation.params["path"])
        if self.root in self.aliases.roots(instruction, effects.reads):
            if not (stored if part is None else part).all():
                raise _ReadsMore
        if operation.name == "store" and part is not None:
            part[...] = True


def _part(stored: np.ndarray, path: Sequence[Any]) -> np.ndarray | None:
    """The view that a path leads to, None unless it only has indices that are known."""
    for step in path:
        if not isinstance(step, Index):
            return None
        for dim in step.dims:
            if isinstance(dim.start if isinstance(dim, Slice) else dim, memory.Dynamic):
                return None
    return memory.viewer(stored.shape, stored.dtype, tuple(path))(stored)
