"""Select to min and max: turns a select between the sides of a comparison into an extremum.

This holds for integers only. Floats have NaN and signed zeros.
"""

from __future__ import annotations

from pallas_shim.evaluator.passes.peephole import Peephole
from pallas_shim.evaluator.program import Instruction, Value

# The extremum that a select gives if it takes the left side where the comparison holds.
_EXTREMUM = {"gt": "max", "ge": "max", "lt": "min", "le": "min"}
_OTHER = {"max": "min", "min": "max"}


class SelectToMinMax(Peephole):
    def __init__(self) -> None:
        super().__init__()
        self.comparisons: dict[Value, Instruction] = {}

    def compare(self, instruction: Instruction) -> None:
        if all(side.type.dtype.kind in "iu" for side in instruction.ins):
            self.comparisons[instruction.outs[0]] = instruction

    def select(self, instruction: Instruction) -> Value | None:
        predicate, *cases = instruction.ins
        comparison = self.comparisons.get(predicate)
        type = instruction.outs[0].type
        if comparison is None or any(case.type != type for case in cases):
            return None
        extremum = _EXTREMUM[comparison.name]
        left, right = comparison.ins
        if cases == [right, left]:
            return self.builder.apply_one(extremum, (left, right), type)
        if cases == [left, right]:
            return self.builder.apply_one(_OTHER[extremum], (left, right), type)
        return None

    methods = {**dict.fromkeys(_EXTREMUM, compare), "select_n": select}
