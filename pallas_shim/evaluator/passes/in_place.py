"""In place: an elementwise result is written over an operand that nothing uses afterwards.

That operand must have been made in the same round of the same region, as an array of its
own, and no other value may be a view of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from pallas_shim.evaluator.lower import specialise
from pallas_shim.evaluator.passes.rewrite import is_ufunc, make_instruction, with_regions
from pallas_shim.evaluator.program import (
    Instruction,
    Operation,
    Program,
    Region,
    Value,
)

# Beside the ufuncs, the operations whose result is always an array of its own.
_MAKES = frozenset({"concatenate", "convert_element_type", "dot_general", "join", "select_n",
                    "take"})  # fmt: skip


def write_in_place(program: Program) -> Program:
    return Program(program.name, _InPlace().region(program.top))


class _InPlace:
    def __init__(self) -> None:
        self.operations: dict[tuple[Operation, int], Operation] = {}

    def region(self, region: Region) -> Region:
        body = list(region.body)
        last = _last_uses(body, region.results)
        own: set[Value] = set()
        for at, instruction in enumerate(body):
            operation, ins, outs, regions, source = instruction
            if regions:
                body[at] = with_regions(instruction, list(map(self.region, regions)))
                continue
            if is_ufunc(operation) and outs[0].type.shape:
                for position, value in enumerate(ins):
                    if value in own and last.get(value) == at and value.type == outs[0].type:
                        into = self.into(operation, position)
                        body[at] = make_instruction((into, ins, outs, (), source))
                        break
            if is_ufunc(operation) or operation.name in _MAKES:
                own.update(outs)
        return Region(region.params, tuple(body), region.results)

    def into(self, operation: Operation, position: int) -> Operation:
        key = (operation, position)
        if key not in self.operations:
            params = {**operation.params, "into": position}
            self.operations[key] = specialise(
                operation.name, operation.ins, operation.outs, params, False
            )
        return self.operations[key]


def _last_uses(body: Sequence[Instruction], results: Sequence[Value]) -> dict[Value, int]:
    """Where values are last used; without those that are used otherwise than by being read."""
    last: dict[Value, int] = {}
    kept = set(results)
    for at, instruction in enumerate(body):
        operation, ins, _, regions, _ = instruction
        if regions:
            kept.update(ins)
            for region in regions:
                kept.update(region.results)
                for inner in region.walk():
                    kept.update(inner.ins)
                    for each in inner.regions:
                        kept.update(each.results)
        elif operation.effects.io or operation.fn is None:
            kept.update(ins)
        elif operation.view:
            kept.add(ins[0])
        for value in ins:
            last[value] = at
    for value in kept:
        last.pop(value, None)
    return last
