"""Induction variables: the integers that a loop counts with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pallas_shim.evaluator.analysis.ranges import Range, of_dtype
from pallas_shim.evaluator.program import ArrayType, Instruction, Region, Value


class Induction(NamedTuple):
    """A scalar integer that is ``start`` in a loop's first round, and in each that follows ``step``
    more than in the one before, wrapped around in its type."""

    start: Value
    step: int

    def range(self, start: Range, rounds: int) -> Range | None:
        """Its range after so many rounds, if it starts in the given range. None if it may wrap."""
        change = self.step * max(rounds - 1, 0)
        found = Range(start.low + min(change, 0), start.high + max(change, 0))
        return found if found.within(of_dtype(self.start.type.dtype)) else None

    def known_range(self, rounds: int) -> Range | None:
        """The same, from a start that is known; None too if it isn't."""
        if self.start.const is None:
            return None
        first = int(self.start.const)
        return self.range(Range(first, first), rounds)


def of_scan(scan: Instruction) -> dict[Value, Induction]:
    """The induction variables of a scan, by the parameters of its region."""
    count = scan.operation.params["num_carry"]
    return of_loop(scan.ins[:count], scan.regions[0])


def of_loop(starts: Sequence[Value], region: Region) -> dict[Value, Induction]:
    """The induction variables among what a loop carries: its region's first parameters, which are
    ``starts`` in the first round and then the region's first results."""
    additions = {i.outs[0]: i.ins for i in region.body if i.name == "add" and len(i.outs) == 1}
    found = {}
    for start, param, result in zip(starts, region.params, region.results, strict=False):
        type = param.type
        if not isinstance(type, ArrayType) or type.shape or type.dtype.kind not in "iu":
            continue
        if result is param:
            found[param] = Induction(start, 0)
            continue
        others = [value for value in additions.get(result, ()) if value is not param]
        if len(others) == 1 and len(additions[result]) == 2:
            (step,) = others
            if step.const is not None and step.type == type:
                found[param] = Induction(start, int(step.const))
    return found


def of_while(loop: Instruction) -> tuple[Value, Value] | None:
    """Where a while loop starts to count in steps of one, and what it counts up to, if it ends just
    then: it has as many rounds as the one is below the other. Both are known before it begins."""
    condition, body = loop.regions
    if len(condition.body) != 1 or condition.body[0].name != "lt":
        return None
    (going,) = condition.body
    counter, bound = going.ins
    if going.outs[0] is not condition.results[0] or counter not in condition.params:
        return None
    found = of_loop(loop.ins, body).get(body.params[condition.params.index(counter)])
    if found is None or found.step != 1:
        return None
    if bound in condition.params:
        position = condition.params.index(bound)
        if body.results[position] is not body.params[position]:
            return None
        bound = loop.ins[position]
    return found.start, bound
