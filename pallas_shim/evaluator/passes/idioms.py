"""Idioms: what code spells out in several instructions and one does, on integers.

Vector units combine few masks, so kernels widen booleans to integers, combine those, and
compare the result with zero: here they stay booleans. A select between the two sides of
their own comparison is a minimum or a maximum; on floats it is not, because of NaN.

The instructions that are no longer needed are left to dead code.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pallas_shim.evaluator import rules
from pallas_shim.evaluator.lower import specialise
from pallas_shim.evaluator.passes.identities import uniform
from pallas_shim.evaluator.passes.rewrite import (
    Substitution,
    make_instruction,
    substitute,
    with_regions,
)
from pallas_shim.evaluator.program import (
    ArrayType,
    Instruction,
    Operation,
    Program,
    Region,
    Type,
    Value,
)

_BOOL = np.dtype(np.bool_)
# On the sides of a comparison: what a select gives that takes the left side where it holds.
_EXTREMUM = {"gt": "max", "ge": "max", "lt": "min", "le": "min"}
_OTHER = {"max": "min", "min": "max"}


def simplify_idioms(program: Program) -> Program:
    rules.load()
    return Program(program.name, _Idioms().region(program.top))


class _Idioms:
    def __init__(self) -> None:
        self.replaced: Substitution = {}
        self.truths: dict[Value, Value | None] = {}  # of integers that are 0 or 1: the boolean
        self.comparisons: dict[Value, Instruction] = {}
        self.operations: dict[tuple[str, tuple[Type, ...], Type], Operation] = {}
        self.body: list[Instruction] = []
        self.source: object = None

    def region(self, region: Region) -> Region:
        replaced = self.replaced
        get = replaced.get
        outer, self.body = self.body, []
        for instruction in region.body:
            operation, ins, outs, regions, source = instruction
            if replaced:
                new = tuple(map(get, ins, ins))
                if new != ins:
                    ins = new
                    instruction = make_instruction((operation, ins, outs, regions, source))
            if regions:
                instruction = with_regions(instruction, [self.region(r) for r in regions])
            idiom = _IDIOMS.get(operation.name)
            if idiom is not None and type(outs[0].type) is ArrayType:
                self.source = source
                same = idiom(self, instruction)
                if same is not None:
                    replaced[outs[0]] = same
                    continue
            self.body.append(instruction)
        body, self.body = self.body, outer
        return Region(region.params, tuple(body), substitute(region.results, replaced))

    def emit(self, name: str, ins: tuple[Value, ...], type: Type) -> Value:
        key = (name, tuple([value.type for value in ins]), type)
        operation = self.operations.get(key)
        if operation is None:
            operation = self.operations[key] = specialise(name, key[1], (type,), {}, False)
        out = Value(type)
        self.body.append(make_instruction((operation, ins, (out,), (), self.source)))
        return out

    def truth(self, value: Value) -> Value | None:
        """The boolean of which an integer is the 0 or 1, None if there is none."""
        if value not in self.truths:
            array, boolean = value.const, None
            if (
                array is not None
                and array.dtype.kind in "iu"
                and ((array == 0) | (array == 1)).all()
            ):
                boolean = Value(ArrayType(array.shape, _BOOL), array != 0)
            self.truths[value] = boolean
        return self.truths[value]

    # Each gives the value that stands for the instruction's result, None to keep it.

    def convert(self, instruction: Instruction) -> Value | None:
        (x,), (out,) = instruction.ins, instruction.outs
        if x.type.dtype == _BOOL:
            if out.type.dtype.kind in "iu":
                self.truths[out] = x
            return None
        truth = self.truth(x)
        if truth is not None and out.type.dtype == _BOOL:
            return truth
        if out.type.dtype.kind in "iu":
            self.truths[out] = truth
        return None

    def combine(self, instruction: Instruction) -> None:
        operation, ins, (out,), _, _ = instruction
        if out.type.dtype.kind not in "iu":
            return
        x, y = map(self.truth, ins)
        if x is not None and y is not None:
            boolean = ArrayType(out.type.shape, _BOOL)
            self.truths[out] = self.emit(operation.name, (x, y), boolean)

    def compare(self, instruction: Instruction) -> Value | None:
        x, y = instruction.ins
        if y.const is None or x.type.shape != instruction.outs[0].type.shape:
            return None
        truth, number = self.truth(x), uniform(y)
        if truth is None or number is None or number not in (0, 1):
            return None
        if (instruction.name == "ne") == (number == 0):
            return truth
        return self.emit("not", (truth,), truth.type)

    def order(self, instruction: Instruction) -> None:
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
            return self.emit(extremum, (left, right), type)
        if cases == [left, right]:
            return self.emit(_OTHER[extremum], (left, right), type)
        return None


_IDIOMS: dict[str, Callable[[_Idioms, Instruction], Value | None]] = {
    "convert_element_type": _Idioms.convert,
    **dict.fromkeys(("and", "or", "xor"), _Idioms.combine),
    **dict.fromkeys(("eq", "ne"), _Idioms.compare),
    **dict.fromkeys(("gt", "ge", "lt", "le"), _Idioms.order),
    "select_n": _Idioms.select,
}
