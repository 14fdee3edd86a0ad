"""Functions of floats where they are special: poles, zeros of both signs, subnormals, infinities,
NaN, integers and halves, huge and tiny numbers; of 16-bit dtypes at every value.

JAX decides, and where XLA is off (`decided`) the exact value: the same NaNs, infinities and signs
of zeros, and elsewhere 4 ulp.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from jax import lax
from scipy import special

from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.rules.elementwise import TABLE, refuses
from tests import samples
from tests.evaluator.rules.test_elementwise import (
    APPROXIMATE,
    NO_EXACT_FLOAT64,
    function,
    operands,
)
from tests.oracle import compare, flushed, x64

NARROW = [d for d in samples.FLOATS if d.itemsize == 2]
WIDE = [d for d in samples.FLOATS if d.itemsize > 2]

# What a float64 function of SciPy's or NumPy's knows to more digits than JAX.
EXACT: dict[str, Callable[..., Any] | None] = {
    **APPROXIMATE,
    "exp2": np.exp2,
    "log2": np.log2,
    "logistic": special.expit,
    "erf_inv": special.erfinv,
    "lgamma": lambda x: np.where(np.isinf(x), np.abs(x), special.gammaln(x)),
    "i0": special.i0,
    "i1": special.i1,
}
# These are products of two functions.
OF_TWO_FUNCTIONS = {"i0", "i1"}
# Of a subnormal operand some versions of XLA have the value at zero, as is here, some that of the
# number (lgamma), and cbrt is 1e-16 with a sign of its own.
ZEROS_OR_NOT = {"cbrt", "lgamma", "log", "log2"}
# Which of two subnormals is larger depends on the processor; test_elementwise.py has the rest.
ELSEWHERE = {"max", "min", "conj"}

# SciPy has these to no more than float64's digits, and XLA to fewer.
FEW_DIGITS = {*NO_EXACT_FLOAT64, *OF_TWO_FUNCTIONS, "zeta", "polygamma"}

# Its factorial is a longdouble.
LARGEST = 1700

Functions = dict[str, Callable[..., Any]]


def functions(count: int, dtype: np.dtype) -> Functions:
    found = {
        name: function(name)
        for name, row in TABLE.items()
        if row.real is not None and function(name) is not None and operands(name) == count
        and not refuses(name, dtype) and name not in ELSEWHERE
    }  # fmt: skip
    if count == 1:
        found |= {f"round {m.name}": lambda x, m=m: lax.round(x, m) for m in lax.RoundingMethod}
        found |= {
            f"to the power of {y}": lambda x, y=y: lax.integer_pow(x, y)
            for y in (-3, -1, 0, 1, 2, 7)
        }
        found |= {"i0": jax.scipy.special.i0, "i1": jax.scipy.special.i1}
    if count == 2:
        found["pow"] = lax.pow
    return found


def grid(dtype: np.dtype) -> np.ndarray:
    """About a hundred and thirty numbers, each with both signs."""
    info = ml_dtypes.finfo(dtype)
    tiny, eps = float(info.tiny), float(info.eps)
    positive = np.array([
        0, float(info.smallest_subnormal), tiny / 2, tiny, 2 * tiny, 1e-20, 1e-10, 1e-5, 1e-3,
        0.1, 0.25, 0.5, 0.75, 1 - eps / 2, 1, 1 + eps, 1.25, 1.4616321449683623, 1.5, 2, 2.5, 3,
        3.5, 4, 5, 6, 7, 7.5, 8, 10, 12.5, 20, 33, 35, 50, 64, 88.7, 89, 100, 103.3, 127, 128,
        150, 170, 171, 172, 709.8, 1e4, 65504, 1e6, 2**22 + 0.5, 2**23 + 1, 2**24, 1e10, 2**53,
        1e30, 1e100, 1e300, float(info.max), np.inf, np.nan, np.pi / 4, np.pi / 2, np.pi,
    ])  # fmt: skip
    with np.errstate(all="ignore"):
        positive = positive.astype(dtype)
        return np.concatenate([positive, -positive])


def both(found: Functions, *arrays: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Each function's results here and JAX's, of one compilation."""

    def f(*xs):
        return [fn(*xs) for fn in found.values()]

    with x64(True):
        program = lower(jax.make_jaxpr(f)(*arrays), name="special values")
        want = [np.asarray(result) for result in jax.jit(f)(*arrays)]
    got = map(np.asarray, Executable(program)(*arrays))
    return dict(zip(found, zip(got, want, strict=True), strict=True))


def is_flushed(x: np.ndarray) -> np.ndarray:
    """Whether it is a subnormal that XLA takes for a zero in most operations."""
    return (flushed(x) == 0) & (x != 0)


@np.errstate(all="ignore")
def exact_zeta(x: np.ndarray, q: np.ndarray) -> np.ndarray:
    """The sum of its first terms and, by Euler and Maclaurin, of the rest."""
    x, q = x.astype(np.longdouble), q.astype(np.longdouble)
    total = np.zeros(x.shape, np.longdouble)
    for k in range(200):
        total += np.power(q + k, -x)
    a = q + 200
    rest = a / (x - 1) + 0.5 + x / (12 * a)
    rest -= x * (x + 1) * (x + 2) / (720 * a**3)
    rest += x * (x + 1) * (x + 2) * (x + 3) * (x + 4) / (30240 * a**5)
    last = np.power(a, -x)
    return np.where(last == 0, total, total + last * rest)


def inside_zeta(x: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Where zeta is a sum of numbers."""
    return (x > 1) & np.where(q > 0, True, (np.floor(q) != q) & (np.floor(x) == x))


def loses_digits(x: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Where zeta's sum is small beside its terms, or subnormal, or that of its late terms is
    forgotten."""
    subnormal = (x.dtype == np.float64) & (q > 1) & (x * np.log10(np.abs(q)) > 280)
    cancels = (q < 0) & (np.floor(q) != q) & (x > 1) & (x % 2 == 1)
    forgotten = (x > 1) & (x < 1 + 1e-12) & (q > 0) & (q < 1e-10)
    return subnormal | cancels | forgotten


@np.errstate(all="ignore")
def decided(name: str, *xs: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Where XLA is off, and what is exact there; or None.

    Its `zeta` and `polygamma` make NaNs of infinities times zero, of factorials from 35! on in
    float32 too, and know only ten terms of negative second arguments. Its `pow` of a subnormal
    number has few digits.
    """
    if name == "pow":
        exact = np.power(*[x.astype(np.longdouble) for x in xs])
        return is_flushed(xs[0]) | is_flushed(xs[1]), exact
    if name == "zeta":
        x, q = map(flushed, xs)
        return inside_zeta(x, q), exact_zeta(x, q)
    if name == "polygamma":
        m, x = map(flushed, xs)
        natural = (m > 0) & (np.floor(m) == m) & (m <= LARGEST)
        order = np.where(natural, m, 1).astype(np.float64)
        factorials = np.cumprod(np.arange(LARGEST + 1).clip(1).astype(np.longdouble))
        factor = np.where(order % 2 == 0, -1, 1) * factorials[order.astype(int)]
        exact = factor * exact_zeta(order + 1, x)
        of_zero = (m == 0) & (x != 0)
        exact = np.where(of_zero, special.psi(x.astype(np.float64)), exact)
        return natural & inside_zeta(order + 1, x) | of_zero, exact
    return None


def undecided(name: str, *xs: np.ndarray) -> np.ndarray | bool:
    """Where nobody knows the digits of the result, or factorials aren't floats."""
    if name == "zeta":
        return loses_digits(*xs)
    if name == "polygamma":
        # The order is even, and the number negative.
        m, x = xs
        cancels = (x < 0) & (np.floor(x) != x) & (m > 0)
        return cancels & ((m % 2 == 0) | (m > 170)) | (m > LARGEST)
    return False


@np.errstate(all="ignore")
def exact(name: str, *xs: np.ndarray) -> np.ndarray | None:
    fn = EXACT.get(name)
    if fn is None:
        return None
    has_more = xs[0].dtype == np.float64 and "g" in "".join(getattr(fn, "types", ()))
    return fn(*[x.astype(np.longdouble if has_more else np.float64) for x in xs])


def at_zero(x: np.ndarray, results: np.ndarray) -> np.ndarray:
    """For each x the result at the zero of its sign, which is one of the operands."""
    below = np.signbit(x)
    return np.where(below, *[results[np.flatnonzero((x == 0) & (below == sign))[0]]
                             for sign in (True, False)])  # fmt: skip


@np.errstate(all="ignore")
def check(found: Functions, *xs: np.ndarray) -> None:
    dtype = xs[0].dtype
    wrong = []
    for name, (got, want) in both(found, *xs).items():
        off = decided(name, *xs)
        if off is not None:
            want = np.where(off[0], off[1].astype(dtype), want)
        if name in ZEROS_OR_NOT:
            want = np.where(is_flushed(xs[0]), at_zero(xs[0], got), want)
        want = np.where(undecided(name, *xs), got, want)
        near = name in EXACT or off is not None
        ulp = 8 if name in OF_TWO_FUNCTIONS else 4 if near else 0
        rtol = 1e-12 if dtype == np.float64 and name in FEW_DIGITS else None
        try:
            compare(got, want, ulp, rtol, exact(name, *xs))
        except AssertionError as error:
            wrong.append(f"{name}: {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_every_value_of_16_bits(dtype):
    check(functions(1, dtype), samples.values(dtype))


@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_special_values(dtype):
    check(functions(1, dtype), grid(dtype))


@pytest.mark.parametrize("dtype", samples.FLOATS, ids=str)
def test_pairs_of_special_values(dtype):
    x, y = samples.all_pairs(grid(dtype))
    # Of so large a number below zero too many terms would have to be added up.
    with np.errstate(invalid="ignore"):  # ml_dtypes' comparisons warn of NaN
        few = ~((y < -150) & (np.floor(y) != y))
    check(functions(2, dtype), x[few], y[few])


# -- functions that JAX composes of many rounded steps --------------------------------------------

# How many units of eps such a function may be off if it is a small difference of larger numbers,
# and how far, relative, elsewhere. test_elementwise.py says how many digits they have.
ROUNDED_STEPS = 64
FEW_STEPS, MANY_STEPS = 2e-4, 0.15


def composed(name: str, got: np.ndarray, want: np.ndarray, rtol: float) -> None:
    eps = float(ml_dtypes.finfo(np.promote_types(got.dtype, np.float32)).eps)
    rtol = max(rtol, 2 * float(ml_dtypes.finfo(got.dtype).eps))
    got, want = got.astype(np.float64), want.astype(np.float64)
    np.testing.assert_allclose(got, want, rtol, ROUNDED_STEPS * eps, err_msg=name)
    zero = (got == 0) & (want == 0)
    np.testing.assert_array_equal(np.signbit(got[zero]), np.signbit(want[zero]), name)


def or_limit(got: np.ndarray, want: np.ndarray, a: np.ndarray, limit: Any) -> np.ndarray:
    """XLA's results. Where ``a`` is so small that some steps underflow, in XLA not always the same
    ones as here, also the limit at zero."""
    underflows = (a.dtype == np.float64) & (a > 0) & (a < 1e-300)
    return np.where(underflows & np.isclose(got, limit), got, want)


def not_large(dtype: np.dtype) -> np.ndarray:
    """Of large numbers, JAX adds up as many terms as they say, or has no digits."""
    few = grid(dtype)
    magnitude = np.abs(few.astype(np.float64))
    return few[~(magnitude > 2e4) | np.isinf(magnitude)]


@pytest.mark.parametrize("dtype", samples.FLOATS, ids=str)
@np.errstate(all="ignore")
def test_special_values_of_gamma_functions(dtype):
    a, x = samples.all_pairs(not_large(dtype))
    names = ["igammac", "random_gamma_grad"]
    if dtype in WIDE:  # the others are computed as float32
        names += ["igamma", "igamma_grad_a"]
    results = both({name: getattr(lax, name) for name in names}, a, x)
    limits = {"igamma": 1.0, "igammac": 0.0, "igamma_grad_a": -special.exp1(x.astype(np.float64))}
    for name, (got, want) in results.items():
        composed(name, got, or_limit(got, want, a, limits.get(name, np.nan)), FEW_STEPS)


@pytest.mark.parametrize("dtype", samples.FLOATS, ids=str)
@np.errstate(all="ignore")
def test_special_values_of_betainc(dtype):
    some = not_large(dtype)
    limits = np.array([0, 1, np.inf, np.nan], dtype)
    chosen = (np.concatenate([part, limits]) for part in (some[::4], some[1::4], some[::3]))
    a, b, x = (each.ravel() for each in np.meshgrid(*chosen))
    ((got, want),) = both({"betainc": lax.betainc}, a, b, x).values()
    composed("betainc", got, or_limit(got, want, np.maximum(a, b), b / (a + b)), MANY_STEPS)
