"""Where values are used for the last time, so that large ones needn't be kept any longer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from pallas_shim.evaluator.memory import same
from pallas_shim.evaluator.program import ArrayType, Instruction, Region, Value

# Values of up to this many bytes are kept.
_DROP_ABOVE = 1 << 14


def last_uses(body: Sequence[Instruction], keep: Sequence[Value]) -> dict[int, list[Value]]:
    """Large values defined in this body, by the index of the instruction that last uses them."""
    last: dict[Value, int] = {}
    first_name: dict[Value, Value] = {}  # of values that have two
    for index, instruction in enumerate(body):
        named = instruction.operation.fn is same
        if named:
            (value,) = instruction.ins
            first_name[instruction.outs[0]] = first_name.get(value, value)
        for value in () if named else instruction.outs:
            if isinstance(value.type, ArrayType) and value.type.nbytes > _DROP_ABOVE:
                last[value] = index
        inner = itertools.chain.from_iterable(map(Region.uses, instruction.regions))
        for value in itertools.chain(instruction.ins, inner):
            value = first_name.get(value, value)
            if value in last:
                last[value] = index
    for value in keep:
        last.pop(first_name.get(value, value), None)
    dead: dict[int, list[Value]] = {}
    for value, index in last.items():
        dead.setdefault(index, []).append(value)
    return dead
