"""Writes scalar integers and booleans as Python's own numbers.

An integer is an int within the bounds of its type. A boolean is a bool or a NumPy bool. Each number
has its text and the bounds between which it provably lies. So no check is written if a number can't
overflow, or an index can't leave its dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from pallas_shim.evaluator.analysis import ranges
from pallas_shim.evaluator.analysis.ranges import Range
from pallas_shim.evaluator.program import ArrayType, Type


class Number(NamedTuple):
    """The source of a scalar (of an operand: a name or a literal), and its limits."""

    text: str
    low: int = 0
    high: int = 1

    @property
    def range(self) -> Range:
        return Range(self.low, self.high)


def kind(type: Type) -> str | None:
    """The kind of a value of this type in source: "integer", "boolean", or None for NumPy's."""
    if not isinstance(type, ArrayType) or type.shape:
        return None
    return {"i": "integer", "u": "integer", "b": "boolean"}.get(type.dtype.kind)


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
    of_booleans = set(kinds) == {"boolean"}
    entry = (_OF_BOOLEANS if of_booleans else _OF_INTEGERS).get(name)
    if entry is None or any(type.dtype != dtype for type in ins):
        return None
    count, text = entry
    if len(operands) != count:
        return None
    if of_booleans:
        return Number(text(dtype, *operands))
    found = ranges.result(name, dtype, [x.range for x in operands])
    return None if found is None else Number(text(dtype, *operands), *found)


def wrapped(text: str, dtype: np.dtype) -> str:
    """An integer that may lie outside its type, brought back into it."""
    low, high = ranges.of_dtype(dtype)
    if low == 0:
        return f"({text}) & {high}"
    return f"(({text}) + {-low} & {high - low}) - {-low}"


_COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


def _select(operands: Sequence[Number]) -> Number:
    which, no, yes = operands
    text = f"{yes.text} if {which.text} else {no.text}"
    return Number(text, *no.range.union(yes.range))


def _convert(source: str | None, dtype: np.dtype, x: Number) -> Number:
    if dtype.kind == "b":
        return Number(f"{x.text} != 0")
    if source == "boolean":
        return Number(f"1 if {x.text} else 0")
    return x


# -- integers -----------------------------------------------------------------------------------


def _infix(symbol: str) -> Callable[..., str]:
    return lambda dtype, x, y: f"{x.text} {symbol} {y.text}"


def _div(dtype: np.dtype, x: Number, y: Number) -> str:
    if x.low >= 0:
        return f"{x.text} // {y.text}"
    return f"{x.text} // {y.text} if {x.text} >= 0 else -(-{x.text} // {y.text})"


def _rem(dtype: np.dtype, x: Number, y: Number) -> str:
    if x.low >= 0:
        return f"{x.text} % {y.text}"
    return f"{x.text} % {y.text} if {x.text} >= 0 else -(-{x.text} % {y.text})"


def _choice(symbol: str) -> Callable[..., str]:
    return lambda dtype, x, y: f"{x.text} if {x.text} {symbol} {y.text} else {y.text}"


def _clamp(dtype: np.dtype, low: Number, x: Number, high: Number) -> str:
    bounded = f"({low.text} if {x.text} < {low.text} else {x.text})"
    return f"{bounded} if {bounded} <= {high.text} else {high.text}"


def _not(dtype: np.dtype, x: Number) -> str:
    low, high = ranges.of_dtype(dtype)
    return f"{x.text} ^ {high}" if low == 0 else f"~{x.text}"


def _shift(symbol: str) -> Callable[..., str]:
    return lambda dtype, x, by: f"{x.text} {symbol} {by.low}"


_OF_INTEGERS: dict[str, tuple[int, Callable[..., str]]] = {
    "add": (2, _infix("+")),
    "sub": (2, _infix("-")),
    "mul": (2, _infix("*")),
    "div": (2, _div),
    "rem": (2, _rem),
    "floor_divide": (2, _infix("//")),
    "floor_remainder": (2, _infix("%")),
    "neg": (1, lambda dtype, x: f"-{x.text}"),
    "abs": (1, lambda dtype, x: f"abs({x.text})"),
    "sign": (1, lambda dtype, x: f"({x.text} > 0) - ({x.text} < 0)"),
    "max": (2, _choice(">=")),
    "min": (2, _choice("<=")),
    "clamp": (3, _clamp),
    "and": (2, _infix("&")),
    "or": (2, _infix("|")),
    "xor": (2, _infix("^")),
    "not": (1, _not),
    "shift_left": (2, _shift("<<")),
    "shift_right_arithmetic": (2, _shift(">>")),
    "shift_right_logical": (2, _shift(">>")),
}

_OF_BOOLEANS: dict[str, tuple[int, Callable[..., str]]] = {
    "and": (2, lambda dtype, x, y: f"{x.text} & {y.text}"),
    "or": (2, lambda dtype, x, y: f"{x.text} | {y.text}"),
    "xor": (2, lambda dtype, x, y: f"{x.text} ^ {y.text}"),
    "not": (1, lambda dtype, x: f"not {x.text}"),
}
