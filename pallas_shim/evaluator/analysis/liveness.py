"""Liveness: the last use of each value."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from pallas_shim.evaluator.memory import same
from pallas_shim.evaluator.program import ArrayType, Instruction, Region, Value

# Values of up to this many bytes are kept.
_DROP_ABOVE = 1 << 14


def last_uses(
    body: Sequence[Instruction], named: Mapping[Value, Value] = MappingProxyType({})
) -> dict[Value, int]:
    """The index of the instruction that last uses each value, itself or in its regions.

    ``named``: values that are others under another name.
    """
    last: dict[Value, int] = {}
    for index, instruction in enumerate(body):
        for value in instruction.ins:
            last[named.get(value, value)] = index
        if instruction.regions:
            inner = itertools.chain.from_iterable(map(Region.uses, instruction.regions))
            for value in inner:
                last[named.get(value, value)] = index
    return last


def dead_after(body: Sequence[Instruction], keep: Sequence[Value]) -> dict[int, list[Value]]:
    """Large values defined in this body that needn't be kept any longer, by the index of the
    instruction that last uses them."""
    named: dict[Value, Value] = {}
    large: list[tuple[Value, int]] = []
    for index, instruction in enumerate(body):
        if instruction.operation.fn is same:
            (value,) = instruction.ins
            named[instruction.outs[0]] = named.get(value, value)
            continue
        for value in instruction.outs:
            if isinstance(value.type, ArrayType) and value.type.nbytes > _DROP_ABOVE:
                large.append((value, index))
    if not large:
        return {}
    kept = {named.get(value, value) for value in keep}
    last = last_uses(body, named)
    dead: dict[int, list[Value]] = {}
    for value, made in large:
        if value not in kept:
            dead.setdefault(last.get(value, made), []).append(value)
    return dead
