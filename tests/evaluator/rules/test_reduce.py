"""Reductions and running reductions, checked against JAX."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.lower import lower
from tests.evaluator.rules.bounds import check_sums
from tests.oracle import check_rule, compare

FLOATS = [
    np.float32, np.float64, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e5m2,
]  # fmt: skip
INTS = [np.int8, np.uint8, np.int16, np.int32, np.uint32, np.int64, ml_dtypes.int4]
SHAPES = [((7,), (0,)), ((3, 4), (0,)), ((3, 4), (1,)), ((3, 4), (0, 1)), ((2, 3, 5), (0, 2)),
          ((2, 3, 5), (1,)), ((3, 4), ()), ((1, 4), (0,)), ((0, 3), (0,)), ((3, 0), (0,)),
          ((), ()), ((2, 300, 3), (2,)), ((600, 8), (1,))]  # fmt: skip


def _data(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, shape, dtype, endpoint=True)
    if dtype.kind == "c":
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype)
    if "int" in dtype.name:
        return rng.integers(-8, 8, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def _name(value):
    return np.dtype(value).name if isinstance(value, type) else None


def _each(operation):
    """Reduces one array of each of SHAPES: few compilations, many cases."""
    return lambda *xs: [operation(x, axes) for x, (_, axes) in zip(xs, SHAPES, strict=True)]


def _arrays(dtype):
    return [_data(shape, dtype) for shape, _ in SHAPES]


_LONGEST = 12


@pytest.mark.parametrize("dtype", [*FLOATS, np.complex64], ids=_name)
def test_sum_of_floats(dtype):
    check_sums(_each(lax.reduce_sum), *_arrays(dtype), terms=_LONGEST)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=_name)
def test_narrow_sums_are_accumulated_in_float32(dtype):
    # One by one in bfloat16, each term would be lost beside the one.
    x = np.array([1.0] + [2.0**-9] * 512, dtype)
    (got,) = check_sums(lambda x: lax.reduce_sum(x, (0,)), x, terms=513)
    assert got == 2


@pytest.mark.parametrize("dtype", INTS, ids=_name)
def test_integers_wrap_around(dtype):
    check_rule(_each(lambda x, axes: (lax.reduce_sum(x, axes), lax.reduce_prod(x, axes))),
               *_arrays(dtype))  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=_name)
def test_product_of_floats(dtype):
    rtol = 2 * (_LONGEST + 1) * float(np.finfo(dtype).eps)
    check_rule(_each(lax.reduce_prod), *_arrays(dtype), rtol=rtol)


@pytest.mark.parametrize("dtype", [*FLOATS, *INTS, bool], ids=_name)
def test_max_and_min(dtype):
    check_rule(_each(lambda x, axes: (lax.reduce_max(x, axes), lax.reduce_min(x, axes))),
               *_arrays(dtype))  # fmt: skip


_SPECIAL = st.sampled_from([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan])


def _values(x):
    return [
        *(op(x, axes) for op in (lax.reduce_max, lax.reduce_min) for axes in ((0,), (1,))),
        *(op(x, 1, r) for op in (lax.cummax, lax.cummin) for r in (False, True)),
    ]


def _indices(x):
    return [op(x, a, np.int32) for op in (lax.argmax, lax.argmin) for a in (0, 1)]


@functools.cache
def _compiled(f, dtype):
    return jax.jit(f), Executable(lower(jax.make_jaxpr(f)(np.zeros((3, 6), dtype))))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=_name)
@settings(derandomize=True, max_examples=100, deadline=None)
@given(rows=st.lists(st.lists(_SPECIAL, min_size=6, max_size=6), min_size=3, max_size=3))
def test_max_and_min_of_special_values(dtype, rows):
    x = np.array(rows, dtype)
    for f in (_values, _indices):  # apart: XLA fuses max and argmax, and then mixes up zeros
        want, got = _compiled(f, dtype)
        for a, b in zip(got(x), want(x), strict=True):
            compare(np.asarray(a), np.asarray(b))


def test_special_values_in_sums_and_products():
    rows = [[-0.0, -0.0], [np.inf, -np.inf], [np.inf, 1], [np.nan, 1], [0.0, np.inf]]
    x = np.array(rows, np.float32)

    def f(x):
        operations = (lax.reduce_sum, lax.reduce_prod)
        whole = [op(x, (1,)) for op in operations]
        return whole, [op(x[:1], (0,)) for op in operations], [op(x[0], (0,)) for op in operations]

    check_rule(f, x)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.int32, np.uint32], ids=_name)
def test_logical(dtype):
    operations = (lax.reduce_and, lax.reduce_or, lax.reduce_xor)
    check_rule(_each(lambda x, axes: [op(x, axes) for op in operations]), *_arrays(dtype))


@pytest.mark.parametrize("dtype", [*FLOATS, *INTS, bool], ids=_name)
def test_arg(dtype):
    def f(x):
        return [
            (op(x, 0, np.int32), op(x, 1, np.int32), op(x, 1, np.uint8), op(x[:, :0], 0, np.int32))
            for op in (lax.argmax, lax.argmin)
        ]

    check_rule(f, _data((5, 6), dtype))


_RUNNING = [((7,), 0), ((3, 4), 0), ((3, 4), 1), ((3, 0), 0)]


def _running(*operations):
    return lambda *xs: [
        op(x, axis, reverse)
        for op in operations
        for x, (_, axis) in zip(xs, _RUNNING, strict=True)
        for reverse in (False, True)
    ]


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=_name)
def test_running_floats(dtype):
    xs = [_data(shape, dtype) for shape, _ in _RUNNING]
    check_rule(_running(lax.cumsum, lax.cumprod, lax.cummax, lax.cummin), *xs)


@pytest.mark.parametrize("length", [16, 17, 40, 600])
@pytest.mark.parametrize(
    "dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.complex64], ids=_name
)
def test_running_sums_are_rounded_where_xla_rounds_them(dtype, length):
    def f(x):
        return [
            op(x, axis, reverse)
            for op in (lax.cumsum, lax.cumprod)
            for axis in (0, 1)
            for reverse in (False, True)
        ]

    x = 1 + 0.1 * np.random.default_rng(0).standard_normal((3, length))
    check_rule(f, np.concatenate((x, np.full((2, length), -0.0))).astype(dtype))


@pytest.mark.parametrize("dtype", [np.int8, np.uint32], ids=_name)
def test_running_integers(dtype):
    xs = [_data(shape, dtype) for shape, _ in _RUNNING]
    check_rule(_running(lax.cumsum, lax.cumprod, lax.cummax, lax.cummin), *xs)


@pytest.mark.parametrize("reverse", [False, True])
def test_running_logsumexp(reverse):
    x = np.abs(_data((4, 6), np.float32)) + 1  # away from results near zero
    special = np.array([[-np.inf, -np.inf, 1.0, np.inf, np.nan, 2.0]], np.float32)
    # Each of six steps is an exp and a log1p (4 ulp each) and two additions.
    check_rule(lambda x: lax.cumlogsumexp(x, 1, reverse), np.concatenate((x, special)), ulp=60)


def test_any_computation():
    scale = np.float32(2)

    def argmax(a, b):
        (x, i), (y, j) = a, b
        keep = (x > y) | ((x == y) & (i < j))
        return jnp.where(keep, x, y), jnp.where(keep, i, j)

    def scaled_max(a, b):
        # A constant, a call, and a cond inside the computation.
        return jax.jit(lambda a, b: lax.cond(a > b, lambda: a * scale, lambda: b * scale))(
            a, b
        ) / scale

    def f(*xs):
        least = np.float32(-np.inf)
        for x, (shape, axes) in zip(xs, SHAPES[:-1], strict=True):
            i = jnp.arange(x.size, dtype=np.int32).reshape(shape)
            yield lax.reduce((x, i), (least, np.int32(2**31 - 1)), argmax, axes)
            yield lax.reduce(x, least, scaled_max, axes)

    check_rule(lambda *xs: list(f(*xs)), *_arrays(np.float32)[:-1])


def test_order_is_kept():
    """Composition of affine maps is associative, but not commutative."""

    def compose(f, g):
        return f[0] * g[0], f[1] * g[0] + g[1]

    a, b = _data((11, 3), np.int32), _data((11, 3), np.int32, seed=1)
    init = (np.int32(1), np.int32(0))
    check_rule(lambda a, b: lax.reduce((a, b), init, compose, (0,)), a, b)
