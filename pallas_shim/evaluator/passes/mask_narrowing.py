"""Mask narrowing: keeps booleans as booleans that the code widens to numbers.

Vector units combine few masks, so kernels widen booleans to integers, combine those, and compare
the result with zero. The pass remembers the boolean behind each integer, combines booleans instead,
and replaces the comparison. A sum of widened booleans counts the true ones.
"""

from __future__ import annotations

import math

import numpy as np

from pallas_shim.evaluator.passes.identities import uniform
from pallas_shim.evaluator.passes.peephole import Peephole
from pallas_shim.evaluator.program import ArrayType, Instruction, Value

_BOOL = np.dtype(np.bool_)
# Sums of so many ones are exact in the floats that they are counted as, in any order.
_EXACT = {np.dtype(np.float32): 1 << 24, np.dtype(np.float64): 1 << 53}


class MaskNarrowing(Peephole):
    def __init__(self) -> None:
        super().__init__()
        self.truths: dict[Value, Value | None] = {}  # of integers that are 0 or 1: the boolean
        self.floats: dict[Value, Value] = {}  # of floats that are 0 or 1: the boolean

    def truth(self, value: Value) -> Value | None:
        """The boolean that an integer holds as 0 or 1, None if there is none."""
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

    def convert(self, instruction: Instruction) -> Value | None:
        (x,), (out,) = instruction.ins, instruction.outs
        if x.type.dtype == _BOOL:
            self.widen(x, out)
            return None
        truth = self.truth(x)
        if truth is not None and out.type.dtype == _BOOL:
            return truth
        if out.type.dtype.kind in "iu":
            self.truths[out] = truth
        return None

    def select(self, instruction: Instruction) -> None:
        which, *cases = instruction.ins
        (out,) = instruction.outs
        if which.type == ArrayType(out.type.shape, _BOOL) and len(cases) == 2:
            if [uniform(case) for case in cases] == [0, 1]:
                self.widen(which, out)

    def widen(self, truth: Value, number: Value) -> None:
        """Remembers that a number is the 0 or 1 of a boolean."""
        dtype = number.type.dtype
        if dtype.kind in "iu":
            self.truths[number] = truth
        elif math.prod(number.type.shape) <= _EXACT.get(dtype, 0):
            self.floats[number] = truth

    def combine(self, instruction: Instruction) -> None:
        operation, ins, (out,), _, _ = instruction
        if out.type.dtype.kind not in "iu":
            return
        x, y = map(self.truth, ins)
        if x is not None and y is not None:
            boolean = ArrayType(out.type.shape, _BOOL)
            self.truths[out] = self.builder.apply_one(operation.name, (x, y), boolean)

    def compare(self, instruction: Instruction) -> Value | None:
        x, y = instruction.ins
        if y.const is None or x.type.shape != instruction.outs[0].type.shape:
            return None
        truth, number = self.truth(x), uniform(y)
        if truth is None or number is None or number not in (0, 1):
            return None
        if (instruction.name == "ne") == (number == 0):
            return truth
        return self.builder.apply_one("not", (truth,), truth.type)

    def count(self, instruction: Instruction) -> Value | None:
        (x,), (out,) = instruction.ins, instruction.outs
        truth = self.truth(x) if x.type.dtype.kind in "iu" else self.floats.get(x)
        if truth is None or math.prod(x.type.shape) == math.prod(out.type.shape):
            return None
        axes = tuple(instruction.operation.params["axes"])
        return self.builder.apply_one("count", (truth,), out.type, axes=axes)

    methods = {
        "convert_element_type": convert,
        "select_n": select,
        **dict.fromkeys(("and", "or", "xor"), combine),
        **dict.fromkeys(("eq", "ne"), compare),
        "reduce_sum": count,
    }
