"""Store-to-load forwarding: replaces a load by the value that was just stored there.

One matrix that was stored for all cells of a stack is broadcast to the stack.
"""

from __future__ import annotations

from pallas_shim.evaluator.analysis.alias import AliasAnalysis, load_address, store_address
from pallas_shim.evaluator.analysis.memory_versions import MemoryVersions
from pallas_shim.evaluator.builder import Builder
from pallas_shim.evaluator.passes.rewrite import (
    ScopedTable,
    Substitution,
    substitute,
    with_operands,
    with_regions,
)
from pallas_shim.evaluator.program import PURE, ArrayType, Instruction, Program, Region, Value


def forward_stores(program: Program) -> Program:
    return Program(program.name, _Forwarding(AliasAnalysis(program)).region(program.top))


class _Forwarding:
    def __init__(self, aliases: AliasAnalysis):
        self.aliases = aliases
        self.versions = MemoryVersions(aliases)
        self.stored = ScopedTable()
        self.replaced: Substitution = {}
        self.builder = Builder()

    def region(self, region: Region) -> Region:
        replaced, versions = self.replaced, self.versions
        kept: list[Instruction] = []
        for instruction in with_operands(region.body, replaced):
            operation, ins, outs, regions, _ = instruction
            if regions:
                instruction = self.structured(instruction)
            elif operation.effects is not PURE:
                address = load_address(instruction)
                if address is not None:
                    stored = self.stored.get((address, versions.of(instruction, (0,))))
                    if stored is not None and stored.type == outs[0].type:
                        replaced[outs[0]] = stored
                        continue
                    if stored is not None and _broadcasts(stored, outs[0]):
                        with self.builder.block(kept):
                            self.builder.source = instruction.source
                            replaced[outs[0]] = self.builder.apply_one(
                                "broadcast_to", (stored,), outs[0].type
                            )
                        continue
                versions.write(self.aliases.roots(instruction, operation.effects.writes))
                address = store_address(instruction)
                if address is not None:
                    self.stored.set((address, versions.of(instruction, (0,))), ins[1])
            kept.append(instruction)
        return Region(region.params, tuple(kept), substitute(region.results, replaced))

    def structured(self, instruction: Instruction) -> Instruction:
        regions = []
        for region in self.versions.inside(instruction):
            with self.stored.scope():
                regions.append(self.region(region))
        return with_regions(instruction, regions)


def _broadcasts(stored: Value, loaded: Value) -> bool:
    """Whether what is loaded is a stack whose members are all the stored array."""
    if type(stored.type) is not ArrayType or type(loaded.type) is not ArrayType:
        return False
    shape, dtype = loaded.type
    rank = len(stored.type.shape)
    return (
        stored.type.dtype == dtype and 0 < rank < len(shape) and stored.type.shape == shape[-rank:]
    )
