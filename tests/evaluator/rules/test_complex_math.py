"""Complex numbers at infinities, NaNs, zeros of either sign and branch cuts, against JAX."""

import jax
import numpy as np
import pytest
from jax import lax

from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.lower import lower
from tests.oracle import check_rule, x64

PARTS = [0.0, -0.0, 1.0, -1.0, 2.5, -2.5, np.inf, -np.inf, np.nan, 0.25, 20.0]
UNARY = (
    "neg sign exp exp2 expm1 log log1p sqrt rsqrt logistic sin cos tan sinh cosh tanh asin acos "
    "asinh acosh atan atanh square abs conj"
).split()
BINARY = ("add", "sub", "mul", "div")


def every(dtype):
    part = np.empty(0, dtype).real.dtype
    z = np.empty((len(PARTS), len(PARTS)), dtype)
    z.real, z.imag = np.asarray(PARTS, part)[:, None], np.asarray(PARTS, part)
    # What is both NaN and infinite has a magnitude in some versions of XLA, and none in others.
    return z[~(np.isnan(z) & np.isinf(z))]


def kinds(x):
    """What each part is: a NaN, an infinity by its sign, or a number."""
    return np.where(np.isnan(x), 2, np.where(np.isinf(x), np.sign(x), 0))


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_special_values(dtype):
    z = every(dtype)
    w = z[np.random.default_rng(0).permutation(z.size)]
    # Of a NaN, XLA's inverse tangents are of no known sign, or even finite.
    numbers = z[~np.isnan(z)]
    operands = {
        name: (numbers,) if name in ("atan", "atanh") else (z, w)[: 1 + (name in BINARY)]
        for name in (*UNARY, *BINARY)
    }

    def f(given):
        return {name: getattr(lax, name)(*args) for name, args in given.items()}

    with x64(dtype == "complex128"):
        want = jax.jit(f)(operands)
        names, leaves = sorted(want), jax.tree.leaves(operands)
        results = Executable(lower(jax.make_jaxpr(f)(operands)))(*leaves)
    for name, got in zip(names, results, strict=True):
        expected = np.asarray(want[name])
        assert got.dtype == expected.dtype
        for part in (np.real, np.imag):
            np.testing.assert_array_equal(kinds(part(got)), kinds(part(expected)), name)
        finite = np.isfinite(expected)
        error = np.abs(got[finite] - expected[finite])
        assert (error <= 100 * np.finfo(dtype).eps * np.abs(expected[finite])).all(), name


@pytest.mark.parametrize("dtype", (np.complex64, np.complex128))
def test_log1p_of_minus_one_and_a_subnormal_part(dtype):
    tiny = np.finfo(dtype).smallest_subnormal * 1000
    z = np.empty(4, dtype)
    z.real, z.imag = -1, [tiny, -tiny, 0.0, -0.0]
    check_rule(lambda z: lax.imag(lax.log1p(z)), z, ulp=1)
