"""Common subexpressions: reuses a value computed before, here or in an enclosing region.

Loads count too, as long as nothing writes to their buffer.
"""

from __future__ import annotations

from typing import Any

from pallas_shim.evaluator.analysis.alias import AliasAnalysis, only_reads
from pallas_shim.evaluator.analysis.memory_versions import MemoryVersions
from pallas_shim.evaluator.passes.rewrite import (
    ScopedTable,
    Substitution,
    substitute,
    with_operands,
    with_regions,
)
from pallas_shim.evaluator.program import PURE, Instruction, Program, Region


def share_common_subexpressions(program: Program) -> Program:
    return Program(program.name, _Sharing(AliasAnalysis(program)).region(program.top))


class _Sharing:
    def __init__(self, aliases: AliasAnalysis):
        self.aliases = aliases
        self.versions = MemoryVersions(aliases)
        self.results = ScopedTable()
        self.replaced: Substitution = {}

    def region(self, region: Region) -> Region:
        replaced, results, made = self.replaced, self.results, self.results.made
        kept: list[Instruction] = []
        for instruction in with_operands(region.body, replaced):
            operation, ins, outs, regions, _ = instruction
            key: Any
            if regions:
                kept.append(self.structured(instruction))
                continue
            if operation.effects is PURE:
                key = (operation, ins)
            elif only_reads(operation):
                key = (operation, ins, self.versions.of(instruction, operation.effects.reads))
            else:
                self.versions.write(self.aliases.roots(instruction, operation.effects.writes))
                kept.append(instruction)
                continue
            earlier = results.setdefault(key, outs)
            if earlier is outs:
                made.append(key)
                kept.append(instruction)
            else:
                replaced.update(zip(outs, earlier, strict=True))
        return Region(region.params, tuple(kept), substitute(region.results, replaced))

    def structured(self, instruction: Instruction) -> Instruction:
        regions = []
        for region in self.versions.inside(instruction):
            with self.results.scope():
                regions.append(self.region(region))
        return with_regions(instruction, regions)
