"""Every row of the tables against JAX, over every value of the narrow dtypes.

Results are equal except for the functions in `APPROXIMATE`, whose last digits depend on the
polynomial; there the design's 4 ulp hold, from JAX's result or from the exact one.
"""

from __future__ import annotations

import inspect
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from jax import lax
from jax.extend.core import primitives
from scipy import special

from pallas_shim.evaluator.rules.elementwise import TABLE, cell, refuses, specialised
from tests import samples
from tests.oracle import check_rule

# The function as NumPy has it, for more digits than JAX gives.
APPROXIMATE = {
    "exp": np.exp,
    "exp2": None,
    "expm1": np.expm1,
    "log": np.log,
    "log2": None,
    "log1p": np.log1p,
    "logistic": None,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "cbrt": np.cbrt,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "tanh": np.tanh,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "erf": special.erf,
    "erfc": special.erfc,
    "erf_inv": None,
    "lgamma": special.gammaln,
    "digamma": special.psi,
    "bessel_i0e": special.i0e,
    "bessel_i1e": special.i1e,
    "pow": None,
}
# These take two operands of any dtype too, but have no values near which all is regular.
BY_ARGUMENTS = {"polygamma", "zeta", "conj"}
# XLA flushes subnormal operands in these on some versions, and on others computes with them.
NORMAL_ONLY = {"cbrt", "lgamma", "digamma", "log", "log2"}
# SciPy gives no more digits than float64 has, and XLA fewer.
NO_EXACT_FLOAT64 = {"erf", "erfc", "erf_inv", "lgamma", "digamma", "bessel_i0e", "bessel_i1e"}

NAMES = {"and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor", "not": "bitwise_not"}


RNG = np.random.default_rng(0)


def function(name: str):
    """The lax function of a primitive, or None where this JAX hasn't got the primitive."""
    public = getattr(lax, NAMES.get(name, name), None)
    if public is not None:
        return public
    primitive = getattr(primitives, f"{name}_p", None)
    return None if primitive is None else primitive.bind


def operands(name: str) -> int:
    public = getattr(lax, NAMES.get(name, name), None)
    if public is None:
        return 2 if name.endswith("_to") else 1
    required = [
        p
        for p in inspect.signature(public).parameters.values()
        if p.default is p.empty and p.kind is not p.KEYWORD_ONLY
    ]
    return len(required)


def jax_takes(name: str, dtype: np.dtype) -> bool:
    if name == "abs" and dtype.kind != "f" and not samples.is_float(dtype):
        return dtype in samples.INTEGERS and samples.is_signed(dtype)
    # XLA can't compile some of the functions for float8, and takes minutes for others.
    return dtype not in samples.FLOAT8S or name not in APPROXIMATE or name in ("exp", "tanh")


DTYPES = (samples.BOOL, *samples.INTEGERS, *samples.NARROW_INTEGERS, *samples.FLOATS,
          *samples.FLOAT8S)  # fmt: skip


def rows(count: int, dtype: np.dtype) -> list[str]:
    """The names of the rows with so many operands that take a dtype."""
    return [
        name
        for name in TABLE
        if function(name) is not None and operands(name) == count and name not in BY_ARGUMENTS
        and not refuses(name, dtype) and jax_takes(name, dtype)
    ]  # fmt: skip


def approximate(count: int, dtypes):
    """Parameters for a test of each approximate row with so many operands on each dtype."""
    return [
        pytest.param(name, dtype, id=f"{name}-{dtype.name}")
        for dtype in dtypes
        for name in rows(count, dtype)
        if name in APPROXIMATE
    ]


def check_exact(count: int, dtype: np.dtype, *arrays: np.ndarray, without: Any = ()) -> None:
    """All exact rows at once, which XLA compiles far sooner than one by one."""
    names = [n for n in rows(count, dtype) if n not in APPROXIMATE and n not in without]
    assert names
    check_rule(lambda *xs: [function(name)(*xs) for name in names], *arrays)


def more_digits(fn, dtype):
    """``fn`` on operands widened beyond ``dtype``."""
    wider = np.longdouble if dtype == np.float64 else np.float64

    def exact(*arrays):
        with np.errstate(all="ignore"):
            return fn(*[a.astype(wider) for a in arrays])

    return exact


def tolerance(name, dtype):
    if name not in APPROXIMATE:
        return {}
    if dtype.kind == "c":
        return {"rtol": 40 * np.finfo(dtype).eps}
    if dtype == np.float64 and name in NO_EXACT_FLOAT64:
        return {"rtol": 1e-12}
    fn = APPROXIMATE[name]
    if dtype in samples.FLOAT8S:
        return {"ulp": 1}
    return {"ulp": 4, "exact": None if fn is None else more_digits(fn, dtype)}


def unary_values(name, dtype):
    x = samples.values(dtype)
    if name in NORMAL_ONLY and samples.is_float(dtype):
        x = x[~(np.abs(x) < ml_dtypes.finfo(dtype).tiny) | (x == 0)]
    if dtype == np.float64 and name in ("lgamma", "digamma"):
        x = x[(x > 2.5) | np.isnan(x)]  # XLA's loses digits near the zeros
    return x


def ordered_pairs(dtype):
    """`samples.pairs`, without those of which the larger depends on the processor."""
    x, y = samples.pairs(dtype)
    if dtype != ml_dtypes.bfloat16:
        return x, y
    # A subnormal beside a zero is equal to it where XLA compares with AVX-512, so that either
    # may be the maximum.
    tiny = ml_dtypes.finfo(dtype).tiny
    either = (np.abs(x) < tiny) & (np.abs(y) < tiny) & ((x != 0) | (y != 0))
    return x[~either], y[~either]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exact(dtype):
    check_exact(1, dtype, samples.values(dtype))
    extrema = {"max", "min"}.intersection(rows(2, dtype))
    check_exact(2, dtype, *samples.pairs(dtype), without=extrema)
    if extrema:
        x, y = ordered_pairs(dtype)
        check_rule(lambda x, y: [function(name)(x, y) for name in sorted(extrema)], x, y)


@pytest.mark.parametrize(("name", "dtype"), approximate(1, DTYPES))
def test_approximate(name, dtype):
    check_rule(function(name), unary_values(name, dtype), **tolerance(name, dtype))


@pytest.mark.parametrize(("name", "dtype"), approximate(2, DTYPES))
def test_approximate_of_two(name, dtype):
    check_rule(function(name), *samples.pairs(dtype), **tolerance(name, dtype))


@pytest.mark.parametrize("dtype", samples.COMPLEX, ids=str)
def test_complex(dtype):
    x, y = (RNG.standard_normal((2, 1000, 2)) * 3).astype(f"f{dtype.itemsize // 2}")
    pair = x.view(dtype)[:, 0], y.view(dtype)[:, 0]
    for count in (1, 2):
        names = rows(count, dtype)
        check_rule(
            lambda *xs, names=names: [function(name)(*xs) for name in names],
            *pair[:count], rtol=100 * np.finfo(dtype).eps,
        )  # fmt: skip


@pytest.mark.parametrize("dtype", samples.FLOATS, ids=str)
@pytest.mark.parametrize("method", lax.RoundingMethod)
def test_round(dtype, method):
    check_rule(lambda x: lax.round(x, method), samples.values(dtype))


@pytest.mark.parametrize("dtype", (*samples.FLOATS, *samples.INTEGERS), ids=str)
def test_integer_pow(dtype):
    exponents = range(-4 if samples.is_float(dtype) else 0, 9)
    x = samples.values(dtype)
    check_rule(lambda x: [lax.integer_pow(x, y) for y in exponents], x)


@pytest.mark.parametrize("dtype", samples.FLOATS, ids=str)
def test_pow_of_integers(dtype):
    x, y = np.meshgrid(samples.specials(dtype), np.arange(-5, 40, dtype=np.int32))
    # The reciprocal of a large subnormal is a float, which overflows in XLA.
    kept = (y != -1) | ~((np.abs(x) < ml_dtypes.finfo(dtype).tiny) & (x != 0))
    x, y = x[kept], y[kept]
    check_rule(lax.pow, x, y, ulp=1)


@pytest.mark.parametrize("dtype", (*samples.FLOATS, *samples.INTEGERS), ids=str)
def test_clamp(dtype):
    x, high = ordered_pairs(dtype)
    low = high[::-1].copy()
    check_rule(lax.clamp, low, x, high)
    check_rule(lax.clamp, dtype.type(1), x, dtype.type(5))


@pytest.mark.parametrize(
    "dtype", (samples.BOOL, *samples.FLOATS, *samples.INTEGERS, *samples.COMPLEX,
              *samples.FLOAT8S, *samples.NARROW_INTEGERS), ids=str
)
@pytest.mark.parametrize("size", (60, 1 << 15))
def test_select(dtype, size):
    no, yes = RNG.permutation(np.resize(samples.values(dtype), (2, size)), axis=1)
    check_rule(lax.select_n, RNG.random(size) < 0.5, no, yes)
    for which in (False, True):
        check_rule(lax.select_n, np.bool_(which), no, yes)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("values", [(1, 2), (1, 0.0), (1, -0.0), (0.0, -0.0), (np.nan, 0.0, -0.0)])
def test_extrema_of_large_arrays(dtype, values):
    """Of whose results only those with a zero of the wrong sign are looked at twice."""
    x, y = np.random.default_rng(0).choice(np.array(values, dtype), (2, 4, 3000))
    check_rule(lambda x, y: (lax.max(x, y), lax.min(x, y), lax.max(y, x), lax.min(y, x)), x, y)


@pytest.mark.parametrize("dtype", ("int32", "uint32", "int16", "uint16"))
def test_upper_halves_of_many_products(dtype):
    """Which are computed in pieces."""
    info = np.iinfo(dtype)
    x = RNG.integers(info.min, info.max, 40_000, dtype, endpoint=True)
    mulhi = specialised(cell("mulhi", x.dtype), x.dtype, x.dtype)
    for number in (info.min, info.max, info.max // 3, 1):
        want = (x.astype(object) * int(number)) >> info.bits
        np.testing.assert_array_equal(mulhi(x.reshape(4, -1), x.dtype.type(number)).ravel(), want)


def test_select_among_many():
    cases_ = RNG.standard_normal((4, 60)).astype(np.float32)
    for which in (RNG.integers(0, 4, 60), *range(4)):
        check_rule(lax.select_n, np.asarray(which, np.int32), *cases_)


@pytest.mark.parametrize("dtype", (*samples.FLOATS, *samples.INTEGERS), ids=str)
def test_scalars(dtype):
    """At rank 0 the operands are NumPy scalars or arrays, alone or beside an array."""
    sign = -1 if samples.is_float(dtype) or samples.is_signed(dtype) else 1
    x, y = np.array([sign * 7, 5]).astype(dtype), np.array([2, 0]).astype(dtype)
    # XLA can't compile mulhi of scalars.
    names = [n for n in TABLE if n not in BY_ARGUMENTS and n not in APPROXIMATE and n != "mulhi"
             and function(n) is not None and not refuses(n, dtype) and jax_takes(n, dtype)]
    unary = [function(n) for n in names if operands(n) == 1]
    binary = [function(n) for n in names if operands(n) == 2]
    check_rule(lambda a, b: [f(a) for f in unary] + [f(a, b) for f in binary], x[0], y[0])
    check_rule(lambda a, b: [f(a, b) for f in binary], x[1], y[1])
    check_rule(lambda x, b: [f(x, lax.full_like(x, b)) for f in binary], x, y[0])


@pytest.mark.parametrize("dtype", samples.COMPLEX, ids=str)
def test_parts_of_complex_numbers(dtype):
    z = samples.values(dtype)
    check_rule(lambda z: (lax.real(z), lax.imag(z), lax.conj(z)), z)
    check_rule(lambda x, y: lax.complex(x, y), z.real.copy(), z.imag.copy())
    check_rule(lambda x: lax.conj(x), z.real.copy())


def test_polynomial():
    primitive: Any = getattr(primitives, "polynomial_p", None)
    x = samples.specials(np.dtype(np.float32))
    for count in (1, 3, 12) if primitive is not None else ():
        coefficients = [np.full(x.shape, c, np.float32) for c in range(1, count + 1)]
        # XLA contracts the chain to fused multiply-adds: a sum, within its length's rounding.
        check_rule(lambda *args: primitive.bind(*args), x, *coefficients,
                   rtol=count * np.finfo(np.float32).eps)


POSITIVE = np.concatenate([RNG.uniform(0.1, 5, 200), RNG.uniform(5, 40, 56)])


# How far float32 results may be from XLA's, relative, by what was measured over dense samples.
# JAX composes these of rounded steps, and XLA's results are as far from the exact ones.
COMPOSED = {"igamma": 2e-4, "igammac": 1e-3, "igamma_grad_a": 2e-4, "random_gamma_grad": 2e-5}


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
@pytest.mark.parametrize("name", COMPOSED)
def test_gamma_functions_of_two(name, dtype):
    a, x = POSITIVE.astype(dtype), POSITIVE[::-1].astype(dtype)
    check_rule(getattr(lax, name), a, x, rtol=COMPOSED[name] if dtype == np.float32 else 1e-11)


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
def test_betainc(dtype):
    x = RNG.random(256).astype(dtype)
    check_rule(lax.betainc, POSITIVE.astype(dtype), POSITIVE[::-1].astype(dtype), x,
               rtol=1e-4 if dtype == np.float32 else 1e-11)


def few_ulp(dtype, exact):
    """4 ulp from XLA's result or from the exact one; SciPy has no more digits than float64."""
    if dtype == np.float64:
        return {"rtol": 1e-12}
    return {"ulp": 4, "exact": more_digits(exact, dtype)}


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
def test_zeta(dtype):
    x = np.concatenate([POSITIVE + 1, 1 + 10 ** RNG.uniform(-2, 1, 256)]).astype(dtype)
    q = np.concatenate([POSITIVE[::-1], RNG.uniform(0.05, 100, 256)]).astype(dtype)
    check_rule(lax.zeta, x, q, **few_ulp(dtype, special.zeta))


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
def test_polygamma(dtype):
    order = np.resize(np.arange(8), 512).astype(dtype)
    x = np.concatenate([POSITIVE, RNG.uniform(0.05, 100, 256)]).astype(dtype)

    def exact(order, x):
        return np.where(order == 0, special.psi(x), special.polygamma(order.astype(int), x))

    check_rule(lax.polygamma, order, x, **few_ulp(dtype, exact))
