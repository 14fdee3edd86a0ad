"""Ranges: the interval in which an integer lies, and the interval of a primitive's result.

A result's interval is that of exact arithmetic. If it leaves the type, NumPy wraps around, and the
result has no known interval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Range(NamedTuple):
    """All integers from ``low`` to ``high``, both included."""

    low: int
    high: int

    def within(self, other: Range) -> bool:
        return other.low <= self.low and self.high <= other.high

    def union(self, other: Range) -> Range:
        return Range(min(self.low, other.low), max(self.high, other.high))


def of_dtype(dtype: np.dtype) -> Range:
    """The range of an integer or boolean dtype."""
    if dtype.kind == "b":
        return Range(0, 1)
    info = np.iinfo(dtype)
    return Range(int(info.min), int(info.max))


def result(name: str, dtype: np.dtype, operands: Sequence[Range]) -> Range | None:
    """The range of a primitive's exact result, of integers all of one dtype; None if the primitive
    isn't known, or these operands may have it do something else."""
    rule = _RULES.get(name)
    return None if rule is None else rule(dtype, *operands)


def _of_corners(compute: Callable[[int, int], int]) -> Callable[..., Range]:
    """The result's ends are among the results of the ends of the two intervals."""

    def rule(dtype: np.dtype, x: Range, y: Range) -> Range:
        corners = [compute(a, b) for a in x for b in y]
        return Range(min(corners), max(corners))

    return rule


def _add(dtype: np.dtype, x: Range, y: Range) -> Range:
    return Range(x.low + y.low, x.high + y.high)


def _sub(dtype: np.dtype, x: Range, y: Range) -> Range:
    return Range(x.low - y.high, x.high - y.low)


def _div(dtype: np.dtype, x: Range, y: Range) -> Range | None:
    if y.low <= 0:
        return None
    most = max(abs(x.low), abs(x.high)) // y.low
    return Range(0 if x.low >= 0 else -most, most)


def _rem(dtype: np.dtype, x: Range, y: Range) -> Range | None:
    if y.low <= 0:
        return None
    return Range(0, min(x.high, y.high - 1)) if x.low >= 0 else Range(1 - y.high, y.high - 1)


def _floor_divide(dtype: np.dtype, x: Range, y: Range) -> Range | None:
    return None if y.low <= 0 else _of_corners(int.__floordiv__)(dtype, x, y)


def _floor_remainder(dtype: np.dtype, x: Range, y: Range) -> Range | None:
    return None if y.low <= 0 else Range(0, y.high - 1)


def _neg(dtype: np.dtype, x: Range) -> Range:
    return Range(-x.high, -x.low)


def _abs(dtype: np.dtype, x: Range) -> Range:
    return Range(0, max(abs(x.low), abs(x.high)))


def _sign(dtype: np.dtype, x: Range) -> Range:
    return Range(-(x.low < 0), 1)


def _max(dtype: np.dtype, x: Range, y: Range) -> Range:
    return Range(max(x.low, y.low), max(x.high, y.high))


def _min(dtype: np.dtype, x: Range, y: Range) -> Range:
    return Range(min(x.low, y.low), min(x.high, y.high))


def _clamp(dtype: np.dtype, low: Range, x: Range, high: Range) -> Range:
    return _min(dtype, _max(dtype, x, low), high)


def _and(dtype: np.dtype, x: Range, y: Range) -> Range:
    highs = [operand.high for operand in (x, y) if operand.low >= 0]
    return Range(0, min(highs)) if highs else of_dtype(dtype)


def _any_bit(dtype: np.dtype, x: Range, y: Range) -> Range:
    if min(x.low, y.low) < 0:
        return of_dtype(dtype)
    return Range(0, (1 << max(x.high.bit_length(), y.high.bit_length())) - 1)


def _not(dtype: np.dtype, x: Range) -> Range:
    low, high = of_dtype(dtype)
    return Range(high - x.high, high - x.low) if low == 0 else Range(~x.high, ~x.low)


def _shift(dtype: np.dtype, by: Range) -> int | None:
    """By how many bits to shift, if that is known and fewer than there are."""
    return by.low if by.low == by.high and 0 <= by.low < 8 * dtype.itemsize else None


def _shift_left(dtype: np.dtype, x: Range, by: Range) -> Range | None:
    bits = _shift(dtype, by)
    return None if bits is None else Range(x.low << bits, x.high << bits)


def _shift_right(dtype: np.dtype, x: Range, by: Range) -> Range | None:
    bits = _shift(dtype, by)
    return None if bits is None else Range(x.low >> bits, x.high >> bits)


def _shift_right_arithmetic(dtype: np.dtype, x: Range, by: Range) -> Range | None:
    # The highest bit of an unsigned number is a sign, too.
    return _shift_right(dtype, x, by) if dtype.kind == "i" else None


def _shift_right_logical(dtype: np.dtype, x: Range, by: Range) -> Range | None:
    return _shift_right(dtype, x, by) if x.low >= 0 else None


_RULES: dict[str, Callable[..., Range | None]] = {
    "add": _add,
    "sub": _sub,
    "mul": _of_corners(int.__mul__),
    "div": _div,
    "rem": _rem,
    "floor_divide": _floor_divide,
    "floor_remainder": _floor_remainder,
    "neg": _neg,
    "abs": _abs,
    "sign": _sign,
    "max": _max,
    "min": _min,
    "clamp": _clamp,
    "and": _and,
    "or": _any_bit,
    "xor": _any_bit,
    "not": _not,
    "shift_left": _shift_left,
    "shift_right_arithmetic": _shift_right_arithmetic,
    "shift_right_logical": _shift_right_logical,
}
