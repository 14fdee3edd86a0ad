"""Scratch: the proof that a buffer carries nothing from one cell to another.

Such a buffer can be one for each of the cells that run at once. It is one that only the grid
touches, and into which each cell stores, as a whole, before anything reads it: then it doesn't
matter whose memory it is. Or the first of the cells that run after one another does so, while
the grid goes through all of those before it goes on to the next: then what they read is what
they themselves left there.
"""

from __future__ import annotations

from collections.abc import Callable

from pallas_shim.evaluator.passes.effects import Memory, store_address
from pallas_shim.evaluator.program import PURE, Instruction, Region, Value

# Which branch a switch takes, None if that isn't known.
Taken = Callable[[Instruction], int | None]


def initialised(memory: Memory, root: Value, region: Region, taken: Taken) -> bool:
    """Whether a run of a region stores the whole of a buffer before it reads any of it."""
    return _first_touch(memory, root, region, taken) == "stored"


def _first_touch(memory: Memory, root: Value, region: Region, taken: Taken) -> str | None:
    """How a region's run begins with a buffer: "stored" as a whole, "read", or not at all (or
    only in part, or perhaps)."""
    for instruction in region.body:
        touch = _touch(memory, root, instruction, taken)
        if touch is not None:
            return touch
    return None


def _touch(memory: Memory, root: Value, instruction: Instruction, taken: Taken) -> str | None:
    operation, regions = instruction.operation, instruction.regions
    if regions:
        within = memory.within(instruction)
        if root not in within.reads and root not in within.writes:
            return None
        if operation.name == "switch":
            branch = taken(instruction)
            if branch is not None:
                return _first_touch(memory, root, regions[branch], taken)
            touches = {_first_touch(memory, root, region, taken) for region in regions}
            if "read" in touches:
                return "read"
            return "stored" if touches == {"stored"} else None
        if operation.name == "scan" and operation.params["length"] > 0:
            return _first_touch(memory, root, regions[0], taken)
        return "read" if root in within.reads else None
    if operation.effects is PURE:
        return None
    if root in memory.roots(instruction, operation.effects.reads):
        return "read"
    if root in memory.roots(instruction, operation.effects.writes):
        address = store_address(instruction)
        if address is not None and address[0] == () and address[1] is root:
            return "stored"
    return None
