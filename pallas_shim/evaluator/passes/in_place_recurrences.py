"""Recurrences in place: computes a result that a later round uses in the row where it is stored.

A loop that walks along memory has a row of its own in each round. A result may be stored there and
used again, most often by the next round, as in a recurrence. It needs no other array if nothing
else in the loop touches the memory. Neither do the values from which only that result is computed.
After the loop, the carried value is a copy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from pallas_shim.evaluator.analysis.alias import AliasAnalysis
from pallas_shim.evaluator.passes.rewrite import is_ufunc, with_regions, writing_over
from pallas_shim.evaluator.program import (
    Effects,
    Instruction,
    Operation,
    Program,
    RefType,
    Region,
    Value,
    make_instruction,
)


def compute_recurrences_in_place(program: Program) -> Program:
    if not any(i.name == "rows" for i in program.top.walk()):
        return program
    return Program(program.name, _Recurrences(program).region(program.top))


class _Recurrences:
    def __init__(self, program: Program):
        self.aliases = AliasAnalysis(program)
        self.uses = Counter(program.top.uses())

    def region(self, region: Region) -> Region:
        body: list[Instruction] = []
        for instruction in region.body:
            # Go from the outside in, since `AliasAnalysis` knows the regions before the change.
            for each in self.scan(instruction) if instruction.name == "scan" else [instruction]:
                if each.regions:
                    each = with_regions(each, list(map(self.region, each.regions)))
                body.append(each)
        return Region(region.params, tuple(body), region.results)

    def scan(self, scan: Instruction) -> Iterator[Instruction]:
        """The instructions that do the same as a loop."""
        (region,), count = scan.regions, scan.operation.params["num_carry"]
        rows = frozenset(region.params[count:])
        body: list[Instruction | None] = list(region.body)
        made = {i.outs[0]: at for at, i in enumerate(region.body) if is_ufunc(i.operation)}
        users = self.users(scan)
        outs = list(scan.outs)
        copies: list[Instruction] = []
        for at, store in enumerate(region.body):
            if store.name != "store" or store.ins[0] not in rows or store.operation.params["path"]:
                continue
            row, value = store.ins
            if value not in made or self.uses[value] == 1 or row.ref.contents != value.type:
                continue
            # The walk and the store.
            if users[self.aliases.root(row)] > 2:
                continue
            within = _same_memory(value, region, count)
            if within is None:
                continue
            self.compute_in(row, value, body, made)
            body[at] = None
            for k, result in enumerate(region.results[:count]):
                if result in within and outs[k] is scan.outs[k] and self.uses[outs[k]]:
                    outs[k] = Value(outs[k].type)
                    copies.append(_copy(outs[k], scan.outs[k], scan.source))
        if None not in body:
            yield scan
            return
        kept = tuple([instruction for instruction in body if instruction is not None])
        inner = Region(region.params, kept, region.results)
        yield make_instruction((scan.operation, scan.ins, tuple(outs), (inner,), scan.source))
        yield from copies

    def users(self, scan: Instruction) -> Counter[Value]:
        """By how many walks and instructions of a loop each memory is touched."""
        walks = scan.ins[scan.operation.params["num_carry"] :]
        users = Counter([self.aliases.root(v) for v in walks if isinstance(v.type, RefType)])
        for instruction in scan.regions[0].body:
            effects, within = instruction.operation.effects, self.aliases.within(instruction)
            touched = self.aliases.roots(instruction, (*effects.reads, *effects.writes))
            users.update({*touched, *within.reads, *within.writes})
        return users

    def compute_in(
        self, row: Value, value: Value, body: list[Instruction | None], made: dict[Value, int]
    ) -> None:
        """Computes an elementwise result in a row, with the values that only it is computed from.
        These are no longer ``made`` elsewhere."""
        at = made.pop(value)
        instruction = body[at]
        assert instruction is not None
        operation, operands, outs, _, source = instruction
        ins = (*operands, row)
        position = len(operands)
        into = writing_over(operation, ins, position, Effects(writes=(position,)))
        body[at] = make_instruction((into, ins, outs, (), source))
        for operand in operands:
            if operand in made and operand.type == value.type and self.uses[operand] == 1:
                self.compute_in(row, operand, body, made)
                return


def _same_memory(value: Value, region: Region, count: int) -> set[Value] | None:
    """The values in a loop that may share memory with one that it makes, in any round; None if
    the loop gives one of them to what may keep it."""
    found = {value}
    carries = tuple(zip(region.params, region.results[:count], strict=False))
    while True:
        before = len(found)
        found.update(param for param, result in carries if result in found)
        for instruction in region.walk():
            operation, ins, outs, regions, _ = instruction
            used = not found.isdisjoint(ins) or any(
                not found.isdisjoint(inner.uses()) for inner in regions
            )
            if not used:
                continue
            if operation.effects.io or any(isinstance(v.type, RefType) for v in outs):
                return None
            if regions:
                found.update(outs)
                found.update(param for inner in regions for param in inner.params)
            elif operation.view and ins[0] in found:
                found.update(outs)
        if len(found) == before:
            return found


def _copy(of: Value, to: Value, source: object) -> Instruction:
    operation = Operation("copy", {}, (of.type,), (to.type,), np.copy)
    return make_instruction((operation, (of,), (to,), (), source))
