"""Scalar integers and booleans as Python's own: the expressions of a loop that is emitted.

An integer is an int within the limits of its type; a boolean is a bool or a NumPy bool. Beside
its text each number has the limits between which it is known to lie, so that what can't overflow
isn't checked, nor an index that can't leave its dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from pallas_shim.evaluator.program import ArrayType, Type


class Number(NamedTuple):
    """The source of a scalar (of an operand: a name or a literal), and its limits."""

    text: str
    low: int = 0
    high: int = 1


def kind(type: Type) -> str | None:
    """What a value of this type is in source: "integer", "boolean", or None: NumPy's."""
    if not isinstance(type, ArrayType) or type.shape:
        return None
    return {"i": "integer", "u": "integer", "b": "boolean"}.get(type.dtype.kind)


def limits(dtype: np.dtype) -> tuple[int, int]:
    """The least and the largest number of an integer or boolean dtype."""
    if dtype.kind == "b":
        return 0, 1
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


def expression(
    name: str, ins: Sequence[Type], out: Type, operands: Sequence[Number]
) -> Number | None:
    """A primitive's result, which may overflow ``out`` unless that is done with; None if it has
    no short form for these operands."""
    kinds = [kind(type) for type in ins]
    if kind(out) is None or None in kinds:
        return None
    dtype = out.dtype
    if name in _COMPARISONS and len(operands) == 2:
        return Number(f"{operands[0].text} {_COMPARISONS[name]} {operands[1].text}")
    if name == "select_n":
        return _select(operands) if kinds[0] == "boolean" and len(operands) == 3 else None
    if name == "convert_element_type" and len(operands) == 1:
        return _convert(kinds[0], dtype, *operands)
    table = _OF_BOOLEANS if set(kinds) == {"boolean"} else _OF_INTEGERS
    entry = table.get(name)
    if entry is None or any(type.dtype != dtype for type in ins):
        return None
    count, make = entry
    return make(dtype, *operands) if len(operands) == count else None


def wrapped(text: str, dtype: np.dtype) -> str:
    """An integer that may lie outside its type, brought back into it."""
    low, high = limits(dtype)
    if low == 0:
        return f"({text}) & {high}"
    return f"(({text}) + {-low} & {high - low}) - {-low}"


_COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


def _select(operands: Sequence[Number]) -> Number:
    which, no, yes = operands
    text = f"{yes.text} if {which.text} else {no.text}"
    return Number(text, min(no.low, yes.low), max(no.high, yes.high))


def _convert(source: str | None, dtype: np.dtype, x: Number) -> Number:
    if dtype.kind == "b":
        return Number(f"{x.text} != 0")
    if source == "boolean":
        return Number(f"1 if {x.text} else 0")
    return x


# -- integers -----------------------------------------------------------------------------------


def _add(dtype: np.dtype, x: Number, y: Number) -> Number:
    return Number(f"{x.text} + {y.text}", x.low + y.low, x.high + y.high)


def _sub(dtype: np.dtype, x: Number, y: Number) -> Number:
    return Number(f"{x.text} - {y.text}", x.low - y.high, x.high - y.low)


def _mul(dtype: np.dtype, x: Number, y: Number) -> Number:
    corners = [a * b for a in (x.low, x.high) for b in (y.low, y.high)]
    return Number(f"{x.text} * {y.text}", min(corners), max(corners))


def _div(dtype: np.dtype, x: Number, y: Number) -> Number | None:
    if y.low <= 0:
        return None
    most = max(abs(x.low), abs(x.high)) // y.low
    if x.low >= 0:
        return Number(f"{x.text} // {y.text}", 0, most)
    text = f"{x.text} // {y.text} if {x.text} >= 0 else -(-{x.text} // {y.text})"
    return Number(text, -most, most)


def _rem(dtype: np.dtype, x: Number, y: Number) -> Number | None:
    if y.low <= 0:
        return None
    if x.low >= 0:
        return Number(f"{x.text} % {y.text}", 0, min(x.high, y.high - 1))
    text = f"{x.text} % {y.text} if {x.text} >= 0 else -(-{x.text} % {y.text})"
    return Number(text, 1 - y.high, y.high - 1)


def _floor_divide(dtype: np.dtype, x: Number, y: Number) -> Number:
    corners = [a // b for a in (x.low, x.high) for b in (y.low, y.high)]
    return Number(f"{x.text} // {y.text}", min(corners), max(corners))


def _floor_remainder(dtype: np.dtype, x: Number, y: Number) -> Number:
    return Number(f"{x.text} % {y.text}", 0, y.high - 1)


def _neg(dtype: np.dtype, x: Number) -> Number:
    return Number(f"-{x.text}", -x.high, -x.low)


def _abs(dtype: np.dtype, x: Number) -> Number:
    return Number(f"abs({x.text})", 0, max(abs(x.low), abs(x.high)))


def _sign(dtype: np.dtype, x: Number) -> Number:
    return Number(f"({x.text} > 0) - ({x.text} < 0)", -(x.low < 0), 1)


def _max(dtype: np.dtype, x: Number, y: Number) -> Number:
    text = f"{x.text} if {x.text} >= {y.text} else {y.text}"
    return Number(text, max(x.low, y.low), max(x.high, y.high))


def _min(dtype: np.dtype, x: Number, y: Number) -> Number:
    text = f"{x.text} if {x.text} <= {y.text} else {y.text}"
    return Number(text, min(x.low, y.low), min(x.high, y.high))


def _clamp(dtype: np.dtype, low: Number, x: Number, high: Number) -> Number:
    bounded = f"({low.text} if {x.text} < {low.text} else {x.text})"
    text = f"{bounded} if {bounded} <= {high.text} else {high.text}"
    return Number(text, min(max(x.low, low.low), high.low), min(max(x.high, low.high), high.high))


def _and(dtype: np.dtype, x: Number, y: Number) -> Number:
    text = f"{x.text} & {y.text}"
    highs = [number.high for number in (x, y) if number.low >= 0]
    return Number(text, 0, min(highs)) if highs else Number(text, *limits(dtype))


def _any_bit(symbol: str) -> Callable[..., Number]:
    def make(dtype: np.dtype, x: Number, y: Number) -> Number:
        text = f"{x.text} {symbol} {y.text}"
        if min(x.low, y.low) < 0:
            return Number(text, *limits(dtype))
        return Number(text, 0, (1 << max(x.high.bit_length(), y.high.bit_length())) - 1)

    return make


def _not(dtype: np.dtype, x: Number) -> Number:
    low, high = limits(dtype)
    if low == 0:
        return Number(f"{x.text} ^ {high}", high - x.high, high - x.low)
    return Number(f"~{x.text}", ~x.high, ~x.low)


def _amount(dtype: np.dtype, by: Number) -> int | None:
    """By how many bits to shift, if that is known and fewer than there are."""
    return by.low if by.low == by.high and 0 <= by.low < 8 * dtype.itemsize else None


def _shift_left(dtype: np.dtype, x: Number, by: Number) -> Number | None:
    amount = _amount(dtype, by)
    return None if amount is None else Number(
        f"{x.text} << {amount}", x.low << amount, x.high << amount
    )


def _shift_right(dtype: np.dtype, x: Number, by: Number) -> Number | None:
    amount = _amount(dtype, by)
    return None if amount is None else Number(
        f"{x.text} >> {amount}", x.low >> amount, x.high >> amount
    )


def _shift_right_arithmetic(dtype: np.dtype, x: Number, by: Number) -> Number | None:
    # The highest bit of an unsigned number is a sign, too.
    return _shift_right(dtype, x, by) if dtype.kind == "i" else None


def _shift_right_logical(dtype: np.dtype, x: Number, by: Number) -> Number | None:
    return _shift_right(dtype, x, by) if x.low >= 0 else None


_OF_INTEGERS: dict[str, tuple[int, Callable[..., Number | None]]] = {
    "add": (2, _add),
    "sub": (2, _sub),
    "mul": (2, _mul),
    "div": (2, _div),
    "rem": (2, _rem),
    "floor_divide": (2, _floor_divide),
    "floor_remainder": (2, _floor_remainder),
    "neg": (1, _neg),
    "abs": (1, _abs),
    "sign": (1, _sign),
    "max": (2, _max),
    "min": (2, _min),
    "clamp": (3, _clamp),
    "and": (2, _and),
    "or": (2, _any_bit("|")),
    "xor": (2, _any_bit("^")),
    "not": (1, _not),
    "shift_left": (2, _shift_left),
    "shift_right_arithmetic": (2, _shift_right_arithmetic),
    "shift_right_logical": (2, _shift_right_logical),
}

_OF_BOOLEANS: dict[str, tuple[int, Callable[..., Number | None]]] = {
    "and": (2, lambda dtype, x, y: Number(f"{x.text} & {y.text}")),
    "or": (2, lambda dtype, x, y: Number(f"{x.text} | {y.text}")),
    "xor": (2, lambda dtype, x, y: Number(f"{x.text} ^ {y.text}")),
    "not": (1, lambda dtype, x: Number(f"not {x.text}")),
}
