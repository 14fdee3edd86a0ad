"""Ranges hold every result, and the ends of those that are told exactly."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pallas_shim.evaluator.analysis import ranges
from pallas_shim.evaluator.analysis.ranges import Range

INT8, UINT8 = np.dtype(np.int8), np.dtype(np.uint8)


def towards_zero(x, y):
    return abs(x) // y * (1 if x >= 0 else -1)


# Exact integer arithmetic, of operands for which the primitive is defined.
EXACT: dict[str, Callable[..., int]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": towards_zero,
    "rem": lambda x, y: x - towards_zero(x, y) * y,
    "floor_divide": operator.floordiv,
    "floor_remainder": operator.mod,
    "neg": operator.neg,
    "abs": abs,
    "sign": lambda x: (x > 0) - (x < 0),
    "max": max,
    "min": min,
    "clamp": lambda low, x, high: min(max(x, low), high),
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "not": operator.invert,
    "shift_left": operator.lshift,
    "shift_right_arithmetic": operator.rshift,
    "shift_right_logical": operator.rshift,
}
COUNTS = {**dict.fromkeys(EXACT, 2), "clamp": 3, **dict.fromkeys(("neg", "abs", "sign", "not"), 1)}

intervals = st.tuples(st.integers(-9, 9), st.integers(0, 4)).map(lambda x: Range(x[0], sum(x)))


@pytest.mark.parametrize("name", sorted(EXACT))
@given(operands=st.lists(intervals, min_size=3, max_size=3))
def test_every_result_is_in_the_range(name, operands):
    operands = operands[: COUNTS[name]]
    if name.startswith("shift"):  # by a number that is known, or there is no range
        operands[1] = Range(abs(operands[1].low) % 8, abs(operands[1].low) % 8)
    found = ranges.result(name, INT8, operands)
    if found is None:
        assert name in ("div", "rem", "floor_divide", "floor_remainder", "shift_right_logical")
        assert operands[1].low <= 0 or operands[0].low < 0
        return
    for values in itertools.product(*(range(low, high + 1) for low, high in operands)):
        assert found.low <= EXACT[name](*values) <= found.high


@pytest.mark.parametrize("name", ["add", "sub", "mul", "max", "min", "neg", "floor_divide"])
@given(operands=st.lists(intervals, min_size=2, max_size=2))
def test_the_ends_are_results(name, operands):
    operands = operands[: COUNTS[name]]
    found = ranges.result(name, INT8, operands)
    if found is None:
        return
    results = [EXACT[name](*v) for v in itertools.product(*(range(a, b + 1) for a, b in operands))]
    assert found == (min(results), max(results))


def test_unsigned_bits():
    assert ranges.result("not", UINT8, [Range(3, 5)]) == (250, 252)
    assert ranges.result("shift_right_arithmetic", UINT8, [Range(1, 2), Range(1, 1)]) is None


def test_what_is_not_known():
    assert ranges.result("exp", INT8, [Range(0, 1)]) is None
    assert ranges.result("shift_left", INT8, [Range(0, 1), Range(8, 8)]) is None
    assert ranges.result("shift_left", INT8, [Range(0, 1), Range(1, 2)]) is None


@pytest.mark.parametrize(
    "dtype, want", [(np.bool_, (0, 1)), (np.int8, (-128, 127)), (np.uint32, (0, 2**32 - 1))]
)
def test_dtypes(dtype, want):
    assert ranges.of_dtype(np.dtype(dtype)) == want
