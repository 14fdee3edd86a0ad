"""Narrow products: multiplies matrices of narrow integers as they were before they were widened.

Kernels with quantised operands widen them first. Products of narrow ones have the same sums, and
are far faster: by BLAS, since all sums are exact in floating point, or by native code.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from pallas_shim.evaluator import scalar_types
from pallas_shim.evaluator.passes.peephole import Peephole
from pallas_shim.evaluator.program import ArrayType, Instruction, Program, Value


class NarrowProducts(Peephole):
    def __init__(self) -> None:
        super().__init__()
        self.narrow: dict[Value, Value] = {}  # of a widened integer: what it was

    @classmethod
    def run(cls, program: Program) -> Program:
        # Few programs have such a product, and rewriting one takes longer than looking for it.
        return super().run(program) if any(map(_is_wide, program.top.walk())) else program

    def convert(self, instruction: Instruction) -> None:
        (x,), (out,) = instruction.ins, instruction.outs
        if _holds(out.type.dtype, x.type.dtype):
            self.narrow[out] = self.narrow.get(x, x)

    def multiply(self, instruction: Instruction) -> Value | None:
        operation, ins, (out,), *_ = instruction
        if out.type.dtype.kind not in "iu" or not any(x in self.narrow for x in ins):
            return None
        operands = [self.operand(self.narrow.get(x, x)) for x in ins]
        return self.builder.apply_one("dot_general", operands, out.type, **operation.params)

    def operand(self, x: Value) -> Value:
        """A narrow operand, of a type that native code has."""
        dtype = scalar_types.wide(x.type.dtype)
        if dtype == x.type.dtype:
            return x
        return self.builder.apply_one("convert_element_type", (x,), ArrayType(x.type.shape, dtype))

    methods = {"convert_element_type": convert, "dot_general": multiply}


def _is_wide(instruction: Instruction) -> bool:
    """Whether it is a product of integers of more than a byte."""
    if instruction.name != "dot_general":
        return False
    dtypes = [x.type.dtype for x in instruction.ins]
    return any(dtype.kind in "iu" and dtype.itemsize > 1 for dtype in dtypes)


def _holds(wide: np.dtype, narrow: np.dtype) -> bool:
    """Whether an integer type is larger, and has all numbers of another one."""
    if wide.kind not in "iu" or not (narrow.kind == "b" or scalar_types.is_integer(narrow)):
        return False
    if narrow.kind == "b":
        return True
    has, needs = np.iinfo(wide), ml_dtypes.iinfo(narrow)
    fits = has.min <= int(needs.min) and int(needs.max) <= has.max
    return fits and scalar_types.bit_width(narrow) < 8 * wide.itemsize
