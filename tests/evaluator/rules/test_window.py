"""Windows and convolutions, checked against JAX."""

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

from tests.evaluator.rules.bounds import check_sums
from tests.oracle import check_rule

BF16 = ml_dtypes.bfloat16

# shape, window dimensions, strides, padding, base dilation, window dilation
WINDOWS = [
    ((9,), (3,), (1,), ((0, 0),), (1,), (1,)),
    ((9,), (3,), (2,), ((1, 2),), (1,), (1,)),
    ((9,), (4,), (3,), ((0, 3),), (2,), (2,)),
    ((9,), (2,), (1,), ((-2, -1),), (1,), (1,)),
    ((9,), (2,), (1,), ((-3, 2),), (2,), (1,)),
    ((5, 6), (2, 3), (1, 2), ((1, 0), (0, 2)), (1, 1), (1, 1)),
    ((5, 6), (2, 3), (2, 1), ((1, 1), (2, 0)), (2, 1), (1, 2)),
    ((2, 5, 6), (1, 5, 1), (1, 5, 1), ((0, 0),) * 3, (1, 1, 1), (1, 1, 1)),
    ((5, 6), (1, 1), (1, 1), ((0, 0),) * 2, (1, 1), (1, 1)),
    ((3,), (5,), (1,), ((0, 0),), (1,), (1,)),
    ((0, 4), (2, 2), (1, 1), ((1, 1), (0, 0)), (1, 1), (1, 1)),
]
TERMS = 6


def _name(value):
    return np.dtype(value).name if isinstance(value, type) else None


def _data(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind in "iu":
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, shape, dtype, endpoint=True)
    if np.dtype(dtype).kind == "c":
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def _over_windows(init, computation, windows=WINDOWS):
    """Reduces one array for each of the windows: few compilations, many cases."""

    def f(*xs):
        return [
            lax.reduce_window(x, np.array(init, x.dtype), computation, *rest)
            for x, (_, *rest) in zip(xs, windows, strict=True)
        ]

    return f


def _arrays(dtype):
    return [_data(shape, dtype) for shape, *_ in WINDOWS]


@pytest.mark.parametrize("dtype", [np.float32, BF16, np.float16, np.complex64], ids=_name)
def test_window_sums(dtype):
    check_sums(_over_windows(0, lax.add), *_arrays(dtype), terms=TERMS)


@pytest.mark.parametrize("dtype", [np.int8, np.uint32], ids=_name)
def test_integer_windows(dtype):
    info = np.iinfo(dtype)
    check_rule(_over_windows(0, lax.add), *_arrays(dtype))
    check_rule(_over_windows(info.min, lax.max), *_arrays(dtype))
    check_rule(_over_windows(info.max, lax.min), *_arrays(dtype))


@pytest.mark.parametrize("dtype", [np.float32, BF16], ids=_name)
def test_window_extrema(dtype):
    check_rule(_over_windows(-np.inf, lax.max), *_arrays(dtype))
    check_rule(_over_windows(np.inf, lax.min), *_arrays(dtype))


_SPECIAL = st.sampled_from([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan])


@settings(derandomize=True, max_examples=5, deadline=None)
@given(st.lists(st.lists(_SPECIAL, min_size=8, max_size=8), min_size=4, max_size=4))
def test_windows_of_special_values(rows):
    def f(x):
        for init, op in ((-np.inf, lax.max), (np.inf, lax.min)):
            yield lax.reduce_window(x, np.float32(init), op, (2, 3), (1, 2), "SAME")

    check_rule(lambda x: list(f(x)), np.array(rows, np.float32))


def test_any_computation():
    f = _over_windows(0, lambda a, b: a + b + a * b, WINDOWS[:7])
    check_rule(f, *_arrays(np.int32)[:7])

    def pair(a, b):
        keep = a[0] >= b[0]
        return jnp.where(keep, a[0], b[0]), jnp.where(keep, a[1], b[1])

    x = _data((6, 7), np.float32)
    check_rule(
        lambda x, i: lax.reduce_window(
            (x, i), (np.float32(-np.inf), np.int32(-1)), pair, (2, 3), (2, 1), "SAME"
        ),
        x,
        np.arange(42, dtype=np.int32).reshape(6, 7),
    )


POOLS = [
    ((2, 2), (2, 2), "VALID"),
    ((2, 3), (1, 1), "SAME"),
    ((3, 3), (2, 1), ((1, 1), (0, 2))),
]


def _pool(x, init, op, windows):
    return lax.reduce_window(x, np.array(init, x.dtype), op, *windows)


@pytest.mark.parametrize("init, op", [(-np.inf, lax.max), (np.inf, lax.min)])
def test_gradients_of_pooling(init, op):
    def f(x, t):
        for windows in POOLS:
            pool = functools.partial(_pool, init=init, op=op, windows=windows)
            y, back = jax.vjp(pool, x)
            yield back(jnp.round(y * 8))  # few digits, so that sums of them are exact
            yield jax.jvp(pool, (x,), (t,))

    # Ties, and special values.
    x = np.round(_data((6, 7), np.float32) * 2) / 2
    t = _data((6, 7), np.float32, 1)
    check_rule(lambda x, t: list(f(x, t)), x, t)
    x[1, 2], x[4, 4], x[3, 0] = np.nan, np.inf, -np.inf
    check_rule(lambda x, t: [r for pair in list(f(x, t))[1::2] for r in pair], x, t)


# lhs, rhs, and the options of conv_general_dilated
CONVOLUTIONS = [
    ((2, 3, 7), (4, 3, 3), {"window_strides": (1,), "padding": "SAME"}),
    ((2, 3, 7), (4, 3, 3), {"window_strides": (2,), "padding": [(2, 1)]}),
    ((2, 3, 7), (4, 3, 2), {"window_strides": (1,), "padding": [(-1, -2)]}),
    ((2, 3, 7), (4, 3, 3), {"window_strides": (2,), "padding": [(-1, 3)], "lhs_dilation": (2,),
                            "rhs_dilation": (2,)}),
    ((2, 6, 7), (4, 3, 3), {"window_strides": (1,), "padding": "VALID",
                            "feature_group_count": 2}),
    ((4, 3, 7), (6, 3, 3), {"window_strides": (1,), "padding": "VALID", "batch_group_count": 2}),
    ((2, 3, 5, 6), (4, 3, 2, 3), {"window_strides": (1, 2), "padding": "SAME"}),
    ((2, 5, 6, 3), (2, 3, 3, 4), {"window_strides": (1, 1), "padding": [(1, 0), (0, 2)],
                                  "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
                                  "rhs_dilation": (1, 2)}),
    ((5, 3, 6, 2), (4, 2, 3, 3), {"window_strides": (2, 1), "padding": "SAME",
                                  "dimension_numbers": ("HCWN", "OHWI", "WNHC")}),
    ((2, 3), (4, 3), {"window_strides": (), "padding": ()}),
    ((2, 4, 7), (4, 1, 3), {"window_strides": (1,), "padding": "SAME",
                            "feature_group_count": 4}),
    ((2, 3, 2), (4, 3, 3), {"window_strides": (1,), "padding": "VALID"}),
]  # fmt: skip
CONVOLUTION_TERMS = 18


def _convolutions(*arrays, preferred=None, of=CONVOLUTIONS):
    pairs = zip(arrays[::2], arrays[1::2], of, strict=True)
    return [
        lax.conv_general_dilated(x, y, preferred_element_type=preferred, **options)
        for x, y, (_, _, options) in pairs
    ]


def _operands(dtype, of=CONVOLUTIONS):
    pairs = ((_data(a, dtype), _data(b, dtype, 1)) for a, b, _ in of)
    return [operand for pair in pairs for operand in pair]


@pytest.mark.parametrize("dtype", [np.float32, BF16], ids=_name)
def test_convolutions(dtype):
    # XLA compiles each for seconds, and what a dtype changes is the same in all.
    some = CONVOLUTIONS if dtype == np.float32 else CONVOLUTIONS[::3]
    f = functools.partial(_convolutions, of=some)
    check_sums(f, *_operands(dtype, some), terms=CONVOLUTION_TERMS)


def test_complex_convolution():
    x, y, _, _, *_ = _operands(np.complex64)
    check_sums(lambda x, y: lax.conv(x, y, (1,), "SAME"), x, y, terms=2 * CONVOLUTION_TERMS)


def test_integer_convolutions():
    for some, dtype in ((CONVOLUTIONS[::2], np.int8), (CONVOLUTIONS[1::2], np.int32)):
        f = functools.partial(_convolutions, of=some, preferred=np.int32)
        check_rule(f, *_operands(dtype, some))


def test_gradients_of_convolution():
    """They are convolutions with dilations and groups that users seldom write."""

    def f(x, y):
        for _, _, options in CONVOLUTIONS[:2]:
            out, back = jax.vjp(lambda x, y, o=options: lax.conv_general_dilated(x, y, **o), x, y)
            yield back(jnp.ones(out.shape, out.dtype))

    x, y = _operands(np.float32)[:2]
    check_sums(lambda x, y: list(f(x, y)), x, y, terms=2 * 7 * 4)


def _scattered(select, scatter, window, strides, padding):
    """The primitive of which JAX itself makes only the sum of what is selected by size."""

    def computation(f, dtype):
        scalar = jax.ShapeDtypeStruct((), dtype)
        return getattr(traced := jax.make_jaxpr(f)(scalar, scalar), "jaxpr", traced)

    def f(x, source, init):
        return lax.select_and_scatter_p.bind(
            x, source, init,
            select_jaxpr=computation(select, x.dtype), select_consts=(),
            scatter_jaxpr=computation(scatter, x.dtype), scatter_consts=(),
            window_dimensions=window, window_strides=strides, padding=padding,
        )  # fmt: skip

    return f


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
@pytest.mark.parametrize(
    "select, scatter",
    [(lax.ge, lax.max), (lax.lt, lax.add), (lambda x, y: x * x >= y, lambda x, y: x + 2 * y)],
)
@pytest.mark.parametrize(
    "shape, window, strides, padding, counts",
    [
        ((9,), (3,), (2,), ((0, 0),), (4,)),
        ((9,), (3,), (1,), ((1, 1),), (9,)),
        ((5, 6), (2, 3), (1, 2), ((1, 0), (3, 2)), (5, 5)),
        ((5, 6), (2, 2), (2, 2), ((-1, 0), (0, -2)), (2, 2)),
        ((4,), (2,), (1,), ((3, 0),), (6,)),
    ],
)
def test_select_and_scatter(dtype, select, scatter, shape, window, strides, padding, counts):
    rng = np.random.default_rng(0)
    x, source = (rng.integers(-4, 5, s).astype(dtype) for s in (shape, counts))
    check_rule(_scattered(select, scatter, window, strides, padding), x, source, dtype(3))
