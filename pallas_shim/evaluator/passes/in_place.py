"""In place: writes an elementwise result over an array that nothing uses afterwards.

That array is an operand, or else one whose last use was shortly before. It must have been made in
the same round of the same region, as an array of its own, and no other value may be a view of it.
"""

from __future__ import annotations

from pallas_shim.evaluator.analysis.liveness import last_uses
from pallas_shim.evaluator.ops import MAKES_ARRAYS
from pallas_shim.evaluator.passes.rewrite import is_ufunc, with_regions, writing_over
from pallas_shim.evaluator.program import (
    ArrayType,
    Operation,
    Program,
    Region,
    Type,
    Value,
    make_instruction,
)

# For how many instructions an array waits to be reused. It may then still be in a cache, and little
# memory waits. Below 32 KB allocating is cheaper than reusing.
_WAITS, _AT_LEAST = 16, 1 << 15


def write_in_place(program: Program) -> Program:
    return Program(program.name, _InPlace().region(program.top))


class _InPlace:
    def __init__(self) -> None:
        self.operations: dict[tuple[Operation, int], Operation] = {}

    def region(self, region: Region) -> Region:
        body = list(region.body)
        last = _last_reads(region)
        own: set[Value] = set()
        waiting: dict[Type, list[tuple[int, Value]]] = {}
        for at, instruction in enumerate(body):
            operation, ins, outs, regions, source = instruction
            if regions:
                body[at] = with_regions(instruction, list(map(self.region, regions)))
                continue
            dying = [value for value in dict.fromkeys(ins) if value in own and last[value] == at]
            if is_ufunc(operation) and (type := outs[0].type).shape:
                over = next((value for value in dying if value.type == type), None)
                if over is not None:
                    dying.remove(over)
                    position = ins.index(over)
                    into = self.into(operation, ins, position)
                    body[at] = make_instruction((into, ins, outs, (), source))
                elif (waited := waiting.get(type)) and waited[-1][0] >= at - _WAITS:
                    ins = (*ins, waited.pop()[1])
                    into = self.into(operation, ins, len(ins) - 1)
                    body[at] = make_instruction((into, ins, outs, (), source))
            for value in dying:
                if isinstance(value.type, ArrayType) and value.type.nbytes >= _AT_LEAST:
                    waiting.setdefault(value.type, []).append((at, value))
            if is_ufunc(operation) or operation.name in MAKES_ARRAYS:
                own.update(value for value in outs if value in last)
        return Region(region.params, tuple(body), region.results)

    def into(self, operation: Operation, ins: tuple[Value, ...], position: int) -> Operation:
        key = (operation, position)
        if key not in self.operations:
            self.operations[key] = writing_over(operation, ins, position)
        return self.operations[key]


def _last_reads(region: Region) -> dict[Value, int]:
    """The last use of each value, without values that are used otherwise than by being read."""
    last = last_uses(region.body)
    kept = set(region.results)
    for operation, ins, _, regions, _ in region.body:
        if regions:
            kept.update(ins)
            for inner in regions:
                kept.update(inner.uses())
        elif operation.effects.io or operation.fn is None:
            kept.update(ins)
        elif operation.view or operation.effects.allocates:
            kept.update(ins[:1])  # a buffer may be its operand's own memory
    for value in kept:
        last.pop(value, None)
    return last
