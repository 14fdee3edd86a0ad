"""Scalar integers and booleans as Python's own numbers, against JAX."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from pallas_shim.evaluator.analysis import ranges
from pallas_shim.evaluator.codegen import numbers
from pallas_shim.evaluator.codegen.numbers import Number
from pallas_shim.evaluator.program import ArrayType
from tests.evaluator.codegen.emitting import emit_all
from tests.oracle import check_rule

__all__ = ["emit_all"]

INTEGERS = [np.dtype(f"{kind}int{width}") for width in (8, 16, 32, 64) for kind in ("", "u")]
BOOL = np.dtype(bool)


def values(dtype: np.dtype) -> np.ndarray:
    if dtype == BOOL:
        return np.array([False, True])
    info = np.iinfo(dtype)
    some = {info.min, info.min + 1, info.max - 1, info.max, 0, 1, 2, 3, 7, 100}
    some |= {-1, -2, -3, -8, -100} if info.min < 0 else set()
    return np.array(sorted(some), dtype)


one_column = [[values(dtype)] for dtype in INTEGERS]


def each(f: Any, *groups: Sequence[np.ndarray]) -> None:
    """Compares a function of scalars with JAX's, in a loop for each group of columns."""
    counts = [len(group) for group in groups]

    def run(*columns):
        left = iter(columns)
        together = [tuple(itertools.islice(left, count)) for count in counts]
        return [lax.scan(lambda c, xs: (c, f(*xs)), 0, group)[1] for group in together]

    check_rule(run, *itertools.chain(*groups))


def written_out(sources: list[str]) -> list[bool]:
    """For each loop, whether it calls no function."""
    bodies = [source.partition("\n for ")[2].partition("\n f[")[0] for source in sources]
    return [re.search(r"\bg\d+\(", body.partition("\n")[2]) is None for body in bodies]


def pairs(dtype: np.dtype) -> list[np.ndarray]:
    every = list(itertools.product(values(dtype), repeat=2))
    return [np.array(column, dtype) for column in zip(*every, strict=True)]


@pytest.mark.parametrize("name", [
    "add", "sub", "mul", "max", "min", "bitwise_and", "bitwise_or", "bitwise_xor",
    "eq", "ne", "lt", "le", "gt", "ge",
])  # fmt: skip
def test_two_integers(emit_all, name):
    each(getattr(lax, name), *map(pairs, INTEGERS))
    assert all(written_out(emit_all))


UNUSUAL = ["div", "rem", "shift_left", "shift_right_arithmetic", "shift_right_logical"]


@pytest.mark.parametrize("name", UNUSUAL)
def test_divisors_and_amounts_that_may_be_anything(emit_all, name):
    each(getattr(lax, name), *map(pairs, INTEGERS))
    assert not any(written_out(emit_all))


@pytest.mark.parametrize("name,by", [
    ("div", 1), ("div", 3), ("div", 127), ("rem", 1), ("rem", 3), ("rem", 127),
    ("shift_left", 0), ("shift_left", 3), ("shift_left", 7),
])  # fmt: skip
def test_by_a_known_number(emit_all, name, by):
    each(lambda x: getattr(lax, name)(x, x.dtype.type(by)), *one_column)
    assert all(written_out(emit_all))


@pytest.mark.parametrize("name", UNUSUAL)
@pytest.mark.parametrize("by", [0, -1, 64, 100])
def test_by_a_known_number_that_is_not_ordinary(emit_all, name, by):
    each(lambda x: getattr(lax, name)(x, np.array(by).astype(x.dtype)), *one_column)


@pytest.mark.parametrize("name,kind", [
    ("shift_right_arithmetic", "i"), ("shift_right_logical", "u"),
])  # fmt: skip
def test_shifts_to_the_right(emit_all, name, kind):
    for by in (0, 1, 7):
        emit_all.clear()
        each(lambda x, by=by: getattr(lax, name)(x, x.dtype.type(by)), *one_column)
        assert written_out(emit_all) == [dtype.kind == kind for dtype in INTEGERS]


@pytest.mark.parametrize("name", ["neg", "abs", "sign", "bitwise_not"])
def test_one_integer(emit_all, name):
    each(getattr(lax, name), *[c for c in one_column if name != "abs" or c[0].dtype.kind == "i"])
    assert all(written_out(emit_all))


def test_clamp_and_select(emit_all):
    columns = []
    for dtype in INTEGERS:
        every = list(itertools.product(values(dtype)[::2], repeat=3))
        columns.append([np.array(column, dtype) for column in zip(*every, strict=True)])
    each(lax.clamp, *columns)
    each(lambda low, x, high: lax.select(x > low, x, high), *columns)
    assert all(written_out(emit_all))


@pytest.mark.parametrize("target", ["b", "B", "h", "H", "i", "I", "q", "Q", "?", "f", "d"])
def test_conversion(emit_all, target):
    dtype = np.dtype(target)
    each(lambda x: lax.convert_element_type(x, dtype), *one_column, [values(BOOL)])
    assert all(written_out(emit_all)) or dtype.kind == "f"


@pytest.mark.parametrize("name", ["bitwise_and", "bitwise_or", "bitwise_xor", "eq", "ne", "lt",
                                  "ge", "max", "min"])  # fmt: skip
def test_two_booleans(emit_all, name):
    each(getattr(lax, name), pairs(BOOL))
    assert len(emit_all) == 1


def test_not_and_select_of_booleans(emit_all):
    each(lambda x, y: lax.select(x, y, lax.bitwise_not(y)), pairs(BOOL))
    assert written_out(emit_all) == [True]


def test_narrow_steps_wrap_one_by_one(emit_all):
    """An int8 that overflowed is back before the next operation looks at it."""
    each(
        lambda x: lax.div(x * jnp.int8(3) + jnp.int8(1), jnp.int8(2)) > x,
        [values(np.dtype(np.int8))],
    )
    assert written_out(emit_all) == [True]


@pytest.mark.parametrize("name,operands,want", [
    ("add", [(0, 10), (-2, 3)], (-2, 13)),
    ("sub", [(0, 10), (-2, 3)], (-3, 12)),
    ("mul", [(-4, 3), (-2, 5)], (-20, 15)),
    ("div", [(0, 9), (2, 4)], (0, 4)),
    ("rem", [(-9, 9), (1, 4)], (-3, 3)),
    ("rem", [(0, 2), (1, 4)], (0, 2)),
    ("abs", [(-5, 3)], (0, 5)),
    ("neg", [(-5, 3)], (-3, 5)),
    ("max", [(-5, 3), (0, 1)], (0, 3)),
    ("min", [(-5, 3), (0, 1)], (-5, 1)),
    ("clamp", [(0, 0), (-9, 9), (5, 7)], (0, 7)),
    ("and", [(-5, 3), (0, 6)], (0, 6)),
    ("or", [(0, 4), (0, 3)], (0, 7)),
    ("sign", [(2, 9)], (0, 1)),
])  # fmt: skip
def test_limits(name, operands, want):
    """Every result of numbers inside their limits is inside those of the result."""
    type = ArrayType((), np.dtype(np.int32))
    named = [Number(f"x{i}", *limits) for i, limits in enumerate(operands)]
    found = numbers.expression(name, [type] * len(named), type, named)
    assert found is not None and (found.low, found.high) == want
    ranges = [range(low, high + 1) for low, high in operands]
    for numbers_in in itertools.product(*ranges):
        got = eval(found.text, {f"x{i}": n for i, n in enumerate(numbers_in)})
        assert found.low <= got <= found.high


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_wrapping(dtype):
    low, high = ranges.of_dtype(dtype)
    for number in (low - 1, high + 1, low, high, 3 * high + 5, 3 * low - 5, 0):
        got = eval(numbers.wrapped("x", dtype), {"x": number})
        assert got == np.array(number % (1 << 8 * dtype.itemsize), f"u{dtype.itemsize}").view(dtype)
