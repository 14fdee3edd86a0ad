"""Hoisting: moves invariants out of loops and the grid.

Regions are walked from the inside out, so an instruction that leaves an inner loop may leave the
outer one, too. Instructions stay in the branches of a switch: the branch may not be taken.
"""

from __future__ import annotations

from pallas_shim.evaluator.analysis.alias import AliasAnalysis, only_reads
from pallas_shim.evaluator.passes.rewrite import with_regions
from pallas_shim.evaluator.program import (
    PURE,
    ArrayType,
    Instruction,
    Operation,
    Program,
    Region,
    Value,
)

# A hoisted value stays in memory while the loop runs, so larger results stay in it.
_LARGEST_RESULT = 1 << 24


def hoist_invariants(program: Program) -> Program:
    top, _ = _Hoisting(AliasAnalysis(program)).region(program.top, writes=None)
    return Program(program.name, top)


class _Hoisting:
    def __init__(self, aliases: AliasAnalysis):
        self.aliases = aliases
        self.small: dict[Operation, bool] = {}

    def region(self, region: Region, writes: set[Value] | None) -> tuple[Region, list[Instruction]]:
        """The region without what can go before its loop, and that.

        ``writes``: the buffers that the loop writes to; None if the region is no loop's.
        """
        local = set(region.params)
        kept: list[Instruction] = []
        hoisted: list[Instruction] = []

        def place(instruction: Instruction) -> None:
            if writes is not None:
                if local.isdisjoint(instruction.ins) and self.movable(instruction, writes):
                    hoisted.append(instruction)
                    return
                local.update(instruction.outs)
            kept.append(instruction)

        for instruction in region.body:
            if instruction.regions:
                instruction, freed = self.structured(instruction)
                for inner in freed:
                    place(inner)
            place(instruction)
        return Region(region.params, tuple(kept), region.results), hoisted

    def structured(self, instruction: Instruction) -> tuple[Instruction, list[Instruction]]:
        """The instruction with smaller regions, and what now goes before it."""
        is_loop = instruction.name != "switch"
        writes = self.aliases.within(instruction).writes if is_loop else None
        walked = [self.region(region, writes) for region in instruction.regions]
        freed = [inner for _, hoisted in walked for inner in hoisted]
        return with_regions(instruction, [region for region, _ in walked]), freed

    def movable(self, instruction: Instruction, writes: set[Value]) -> bool:
        """Whether an instruction on values from outside a loop may run before it, even if
        the loop then does not run: arithmetic and loads, which can't fail."""
        operation = instruction.operation
        small = self.small.get(operation)
        if small is None:
            small = self.small[operation] = operation.fn is not None and all(
                not isinstance(out, ArrayType) or out.nbytes <= _LARGEST_RESULT
                for out in operation.outs
            )
        if not small:
            return False
        if operation.effects is PURE:
            return True
        return only_reads(operation) and writes.isdisjoint(
            self.aliases.roots(instruction, operation.effects.reads)
        )
