"""Carried rows: what a round of a loop stores in a row, and goes on with, is computed there.

A loop that walks along memory has a row of its own in each round. A result that is stored there
and used otherwise, most often by the next round, as in a recurrence, needs no array beside that
row if nothing else in the loop touches the memory; nor does what only that result is computed
from. After the loop, what it carries is a copy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from pallas_shim.evaluator.passes.effects import Memory
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


def compute_in_rows(program: Program) -> Program:
    if not any(i.name == "rows" for i in program.top.walk()):
        return program
    return Program(program.name, _Walk(program).region(program.top))


class _Walk:
    def __init__(self, program: Program):
        self.memory = Memory(program)
        self.uses = Counter(program.top.uses())

    def region(self, region: Region) -> Region:
        body: list[Instruction] = []
        for instruction in region.body:
            # From the outside in: `Memory` knows the regions as they were.
            for each in self.scan(instruction) if instruction.name == "scan" else [instruction]:
                if each.regions:
                    each = with_regions(each, list(map(self.region, each.regions)))
                body.append(each)
        return Region(region.params, tuple(body), region.results)

    def scan(self, scan: Instruction) -> Iterator[Instruction]:
        """The instructions that do the same as a loop."""
        (region,), count = scan.regions, scan.operation.params["num_carry"]
        body: list[Instruction | None] = list(region.body)
        made = {i.outs[0]: at for at, i in enumerate(body) if i and is_ufunc(i.operation)}
        outs = list(scan.outs)
        copies: list[Instruction] = []
        for at, store in enumerate(region.body):
            row = self.row_of_its_own(scan, store)
            value = store.ins[1] if row is not None else None
            if row is None or value not in made or self.uses[value] == 1:
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

    def row_of_its_own(self, scan: Instruction, store: Instruction) -> Value | None:
        """The row that is all of what a store writes to, if nothing else in the loop touches the
        memory that it is of."""
        if store.name != "store" or store.operation.params["path"]:
            return None
        (region,), count = scan.regions, scan.operation.params["num_carry"]
        row = store.ins[0]
        rows = region.params[count:]
        if row not in rows or row.ref.contents != store.ins[1].type:
            return None
        root = self.memory.root(scan.ins[count + rows.index(row)])
        walks = [self.memory.root(v) for v in scan.ins[count:] if isinstance(v.type, RefType)]
        others = (i for i in region.body if i is not store)
        if walks.count(root) > 1 or any(self.touches(i, root) for i in others):
            return None
        return row

    def touches(self, instruction: Instruction, root: Value) -> bool:
        effects = instruction.operation.effects
        if root in self.memory.roots(instruction, (*effects.reads, *effects.writes)):
            return True
        within = self.memory.within(instruction)
        return root in within.reads or root in within.writes

    def compute_in(
        self, row: Value, value: Value, body: list[Instruction | None], made: dict[Value, int]
    ) -> None:
        """Has an elementwise result computed in a row, and what only it is computed from."""
        at = made[value]
        instruction = body[at]
        assert instruction is not None
        operation, ins, outs, _, source = instruction
        ins = (*ins, row)
        effects = Effects(writes=(len(ins) - 1,))
        into = writing_over(operation, ins, len(ins) - 1, effects)
        body[at] = make_instruction((into, ins, outs, (), source))
        for operand in instruction.ins:
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
