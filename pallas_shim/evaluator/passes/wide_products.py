"""Wide products: makes `mulhi` and `mul` of products of 32-bit words that are composed of halves.

A TPU has no product of 64 bits, so kernels multiply the halves of words and add up. NumPy has one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from pallas_shim.evaluator.passes.identities import uniform
from pallas_shim.evaluator.passes.peephole import Peephole
from pallas_shim.evaluator.program import ArrayType, Instruction, Value

_WORD = np.dtype(np.uint32)
_HALF, _MASK = 16, 0xFFFF

# A half of a word: which one and of what word; or a number.
Half = tuple[str, Value] | int


class WideProducts(Peephole):
    def __init__(self) -> None:
        super().__init__()
        self.made: dict[Value, Instruction] = {}

    def remember(self, instruction: Instruction) -> None:
        if instruction.outs[0].type.dtype == _WORD:
            self.made[instruction.outs[0]] = instruction

    def add(self, instruction: Instruction) -> Value | None:
        (out,) = instruction.outs
        if out.type.dtype != _WORD:
            return None
        self.made[out] = instruction
        terms = list(self.terms(out))
        if len(terms) == 4:
            return self.upper_word(terms, out)
        return self.lower_word(terms, out) if len(terms) == 2 else None

    def upper_word(self, terms: list[Value], out: Value) -> Value | None:
        """high * high + (cross >> 16) + (other cross >> 16) + (carry >> 16)."""
        whole = [self.product(term) for term in terms]
        shifted = [self.upper(term) for term in terms]
        highs = [product for product in whole if product is not None]
        inner = [value for value in shifted if value is not None]
        if len(highs) != 1 or len(inner) != 3:
            return None
        crosses = [value for value in inner if self.product(value) is not None]
        carries = [value for value in inner if self.product(value) is None]
        if len(crosses) != 2 or len(carries) != 1:
            return None
        found = self.factors(carries[0], crosses)
        if found is None or not self.are_of(highs[0], "high", *found):
            return None
        return self.emit("mulhi", *found, out)

    def lower_word(self, terms: list[Value], out: Value) -> Value | None:
        """(carry << 16) + (low * low & 0xffff)."""
        for carry, low in (terms, terms[::-1]):
            raised = self.by_number("shift_left", carry, _HALF)
            masked = self.lower(low)
            product = None if masked is None else self.product(masked)
            if raised is None or product is None:
                continue
            found = self.factors(raised, None)
            if found is not None and self.are_of(product, "low", *found):
                return self.emit("mul", *found, out)
        return None

    def factors(
        self, carry: Value, crosses: list[Value] | None
    ) -> tuple[Value, Value | int] | None:
        """The factors of a product, from (cross & 0xffff) + (other cross & 0xffff)
        + (low * low >> 16), and from these two if they are known to be the same."""
        masked, shifted = [], []
        for term in self.terms(carry):
            value, other = self.lower(term), self.upper(term)
            masked += [] if value is None else [value]
            shifted += [] if other is None else [other]
        if len(masked) != 2 or len(shifted) != 1 or len(list(self.terms(carry))) != 3:
            return None
        if crosses is not None and set(masked) != set(crosses):
            return None
        one, two, low = map(self.product, (*masked, *shifted))
        if one is None or two is None or low is None:
            return None
        for half in (*one, *two):
            if isinstance(half, int) or half[0] != "high":
                continue
            x = half[1]
            first, second = (one, two) if half in one else (two, one)
            y_low, y_high = _rest(first, ("high", x)), _rest(second, ("low", x))
            y = _whole(y_high, y_low)
            if y is not None and _rest(low, ("low", x)) == y_low:
                return x, y
        return None

    def are_of(self, product: tuple[Half, Half], which: str, x: Value, y: Value | int) -> bool:
        """Whether these are the same halves of two words."""
        of_y: Half = (which, y) if isinstance(y, Value) else (
            y >> _HALF if which == "high" else y & _MASK
        )  # fmt: skip
        return _rest(product, (which, x)) == of_y

    def emit(self, name: str, x: Value, y: Value | int, out: Value) -> Value | None:
        if isinstance(y, int):
            y = Value(ArrayType((), _WORD), np.asarray(y, _WORD))
        shape = np.broadcast_shapes(x.type.shape, y.type.shape)
        return self.builder.apply_one(name, (x, y), out.type) if shape == out.type.shape else None

    # -- what values are made of ------------------------------------------------------------

    def terms(self, value: Value) -> Iterator[Value]:
        """The terms of a sum, of sums too."""
        instruction = self.made.get(value)
        if instruction is None or instruction.name != "add":
            yield value
            return
        for operand in instruction.ins:
            yield from self.terms(operand)

    def product(self, value: Value) -> tuple[Half, Half] | None:
        """The halves that a value is the product of."""
        instruction = self.made.get(value)
        if instruction is None or instruction.name != "mul":
            return None
        x, y = map(self.half, instruction.ins)
        return None if x is None or y is None else (x, y)

    def half(self, value: Value) -> Half | None:
        number = uniform(value)
        if number is not None:
            return int(number) if int(number) <= _MASK else None
        upper, lower = self.upper(value), self.lower(value)
        if upper is not None:
            return "high", upper
        return None if lower is None else ("low", lower)

    def upper(self, value: Value) -> Value | None:
        return self.by_number("shift_right_logical", value, _HALF)

    def lower(self, value: Value) -> Value | None:
        return self.by_number("and", value, _MASK)

    def by_number(self, name: str, value: Value, number: int) -> Value | None:
        """The operand besides a number of the primitive that made a value."""
        instruction = self.made.get(value)
        if instruction is None or instruction.name != name:
            return None
        x, by = instruction.ins
        if uniform(by) == number:
            return x
        return by if name == "and" and uniform(x) == number else None

    methods = {
        **dict.fromkeys(("mul", "and", "shift_left", "shift_right_logical"), remember),
        "add": add,
    }


def _rest(pair: tuple[Half, Half], one: Half) -> Half | None:
    """The other of two halves."""
    if pair[0] == one:
        return pair[1]
    return pair[0] if pair[1] == one else None


def _whole(high: Any, low: Any) -> Value | int | None:
    """The word that has these halves."""
    if isinstance(high, int) and isinstance(low, int):
        return high << _HALF | low
    if isinstance(high, tuple) and isinstance(low, tuple):
        if (high[0], low[0]) == ("high", "low") and high[1] is low[1]:
            return high[1]
    return None
