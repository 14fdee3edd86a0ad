"""Floor division: makes one operation of `x // n` or `x % n`, where n is known and above zero.

JAX only has division towards zero, so jnp composes each floor division of eight operations. NumPy
has no fast division towards zero, but one towards minus infinity, which is what the user wrote.
"""

from __future__ import annotations

import numpy as np

from pallas_shim.evaluator.passes.identities import uniform
from pallas_shim.evaluator.passes.peephole import Peephole
from pallas_shim.evaluator.program import ArrayType, Instruction, Value


class FloorDivision(Peephole):
    def __init__(self) -> None:
        super().__init__()
        self.made: dict[Value, Instruction] = {}

    def remember(self, instruction: Instruction) -> None:
        self.made[instruction.outs[0]] = instruction

    def select(self, instruction: Instruction) -> Value | None:
        """select(sign(x) != 1 and rem(x, n) != 0, div(x, n), div(x, n) - 1), or
        select(rem(x, n) < 0 and rem(x, n) != 0, rem(x, n), rem(x, n) + n)."""
        if len(instruction.ins) != 3:
            return None
        which, plain, corrected = instruction.ins
        both = self.operands("and", which)
        division = self.made.get(plain)
        if both is None or division is None or division.name not in ("div", "rem"):
            return None
        x, by = division.ins
        number = uniform(by)
        if x.type.dtype.kind != "i" or number is None or number <= 0 or x.type != plain.type:
            return None
        conditions = {self.condition(value, x, number) for value in both}
        if division.name == "div":
            found = conditions == {"not above zero", "not whole"}
            found = found and self.by_number("sub", corrected, plain, 1)
            name = "floor_divide"
        else:
            found = conditions == {"below zero", "not whole"}
            found = found and self.by_number("add", corrected, plain, number)
            name = "floor_remainder"
        if not found:
            return None
        divisor = Value(ArrayType((), x.type.dtype), np.asarray(number, x.type.dtype))
        return self.builder.apply_one(name, (x, divisor), plain.type)

    def condition(self, value: Value, x: Value, number: int) -> str | None:
        """The condition on x, or on its remainder by a number, that a boolean stands for."""
        different = self.operands("ne", value)
        if different is not None:
            left, right = different
            sign = self.operands("sign", left)
            if sign is not None and sign[0] is x and uniform(right) == 1:
                return "not above zero"
            if self.is_remainder(left, x, number) and uniform(right) == 0:
                return "not whole"
            value = left if right.type.dtype.kind == "b" and uniform(right) == 0 else value
        below = self.operands("lt", value)
        if below is not None and self.is_remainder(below[0], x, number) and uniform(below[1]) == 0:
            return "below zero"
        return None

    def is_remainder(self, value: Value, x: Value, number: int) -> bool:
        return self.by_number("rem", value, x, number)

    def by_number(self, name: str, value: Value, x: Value, number: int) -> bool:
        """Whether a value is the result of a primitive on x and a known number."""
        operands = self.operands(name, value)
        return operands is not None and operands[0] is x and uniform(operands[1]) == number

    def operands(self, name: str, value: Value) -> tuple[Value, ...] | None:
        instruction = self.made.get(value)
        return instruction.ins if instruction is not None and instruction.name == name else None

    methods = {
        **dict.fromkeys(("div", "rem", "sign", "ne", "lt", "and", "sub", "add"), remember),
        "select_n": select,
    }
