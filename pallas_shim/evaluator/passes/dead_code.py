"""Dead code: removes instructions without a used result or a visible effect.

One walk backwards knows at each instruction which values and memory are used after it. So it also
removes stores to a buffer of the program's own that nothing reads any more, and stores that are
wholly overwritten before anything reads them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pallas_shim.evaluator.analysis.alias import AliasAnalysis, store_address
from pallas_shim.evaluator.passes.rewrite import with_regions
from pallas_shim.evaluator.program import PURE, Instruction, Program, Region, Value


def remove_dead_code(program: Program) -> Program:
    return Program(program.name, _Sweep(AliasAnalysis(program)).region(program.top))


class _Sweep:
    def __init__(self, aliases: AliasAnalysis):
        self.aliases = aliases
        self.used: set[Value] = set()
        self.observed: set[Value] = set()  # roots that are read later

    def region(self, region: Region) -> Region:
        used, observed, aliases = self.used, self.observed, self.aliases
        used.update(region.results)
        overwritten: dict[Value, set[Any]] = {}  # by root, addresses stored to before a read
        kept: list[Instruction] = []
        for instruction in reversed(region.body):
            operation, ins, outs, regions, _ = instruction
            effects = operation.effects
            unused = used.isdisjoint(outs)
            if effects is PURE and not regions:
                if unused:
                    continue
            elif regions:
                touched = aliases.within(instruction)
                if unused and not touched.io and self.unseen(touched.writes):
                    continue
                # A loop's region may run again after what follows it in the text.
                observed |= touched.reads
                for root in touched.reads:
                    overwritten.pop(root, None)
                instruction = with_regions(instruction, [self.region(r) for r in regions])
            else:
                writes = aliases.roots(instruction, effects.writes)
                if unused and not effects.io:
                    if self.unseen(writes):
                        continue
                    address = store_address(instruction)
                    if address is not None and address in overwritten.get(writes[0], ()):
                        continue
                reads = aliases.roots(instruction, effects.reads)
                observed.update(reads)
                address = store_address(instruction)
                if address is not None:
                    overwritten.setdefault(writes[0], set()).add(address)
                for root in reads:
                    overwritten.pop(root, None)
            used.update(ins)
            kept.append(instruction)
        return Region(region.params, tuple(reversed(kept)), region.results)

    def unseen(self, roots: Iterable[Value]) -> bool:
        return all(r in self.aliases.allocated and r not in self.observed for r in roots)
