"""How many digits are kept where XLA may keep more, or fewer: narrow floats, weak types, products
of two dtypes.

The rule here is that of the jaxpr: each operation gives its own dtype, rounded once; what is added
up in between, in a sum or a product of matrices, is float32. So a value doesn't depend on what it
is fused with, as JAX's doesn't when it runs one operation at a time.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax import lax

from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.lower import lower
from tests.oracle import check_rule, compare

BF16, F16, F32 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16), np.dtype(np.float32)
NARROW = pytest.mark.parametrize("dtype", [BF16, F16], ids=str)


def numbers(dtype: np.dtype, count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.standard_normal((count, 32, 64)).astype(F32).astype(dtype)


def ours(f, *args: np.ndarray) -> np.ndarray:
    return np.asarray(Executable(lower(jax.make_jaxpr(f)(*args), name="digits"))(*args)[0])


def chain(x, y, z):
    return (x * y + z) * x - y


@NARROW
def test_each_step_of_a_chain_is_rounded(dtype):
    """XLA keeps float32 between the steps of a fused chain of float16, and not of bfloat16."""
    x, y, z = (narrow.astype(F32) for narrow in numbers(dtype, 3))

    def rounded(exact):
        return exact.astype(dtype).astype(F32)

    want = rounded(rounded(rounded(rounded(x * y) + z) * x) - y).astype(dtype)
    args = numbers(dtype, 3)
    np.testing.assert_array_equal(ours(chain, *args), want)
    if dtype == BF16:
        check_rule(chain, *args)
    with jax.disable_jit():  # one operation at a time
        np.testing.assert_array_equal(want, np.asarray(chain(*map(jnp.asarray, args))))


def test_a_conversion_there_and_back_loses_digits():
    (x,) = numbers(F32, 1)
    got = check_rule(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32) * 3, x)
    np.testing.assert_array_equal(got[0], x.astype(BF16).astype(F32) * 3)


@NARROW
def test_a_weak_scalar_is_rounded_to_the_dtype_beside_it(dtype):
    (x,) = numbers(dtype, 1)
    got = check_rule(lambda x: (0.1 * x, x + 1e-3), x)
    scalar = np.asarray(0.1).astype(dtype).astype(F32)
    assert scalar != np.float32(0.1)
    np.testing.assert_array_equal(got[0], (scalar * x.astype(F32)).astype(dtype))


@NARROW
def test_beside_float32_a_narrow_number_is_widened(dtype):
    x, (y,) = numbers(dtype, 1)[0], numbers(F32, 1)
    got = check_rule(lambda x, y: (x * y, np.float32(0.1) * x), x, y)
    np.testing.assert_array_equal(got[0], x.astype(F32) * y)
    np.testing.assert_array_equal(got[1], np.float32(0.1) * x.astype(F32))


@NARROW
@pytest.mark.parametrize("preferred", [None, F32], ids=str)
def test_products_of_matrices_are_added_up_in_float32(dtype, preferred):
    """And rounded once. XLA does so too, in another order."""
    x, y = numbers(dtype, 2)

    def product(x, y):
        return jnp.dot(x, y.T, preferred_element_type=preferred)

    exact = x.astype(float) @ y.T.astype(float)
    size = np.abs(x.astype(float)) @ np.abs(y.T.astype(float))
    for got in (ours(product, x, y), np.asarray(jax.jit(product)(x, y))):
        assert got.dtype == (preferred or dtype)
        rounding = float(ml_dtypes.finfo(got.dtype).eps) * np.abs(exact)
        assert (np.abs(got.astype(float) - exact) <= rounding / 2 + 64 * 2**-24 * size).all()


def test_a_narrow_matrix_times_float32_is_one_of_float32():
    x, y = numbers(BF16, 1)[0], numbers(F32, 1)[0].T.copy()
    check_rule(lambda x, y: x @ y, x, y, rtol=1e-4)
    assert ours(lambda x, y: x @ y, x, y).dtype == F32


@pytest.mark.parametrize("preferred", [None, np.dtype(np.int32)], ids=str)
def test_products_of_int8_wrap_or_are_exact(preferred):
    x = np.random.default_rng(0).integers(-128, 128, (32, 64)).astype(np.int8)
    got = check_rule(lambda x: lax.dot(x, x.T, preferred_element_type=preferred), x)
    exact = x.astype(np.int64) @ x.T.astype(np.int64)
    np.testing.assert_array_equal(got[0], exact.astype(preferred or np.int8))


@NARROW
def test_sums_are_added_up_in_float32(dtype):
    """XLA rounds each sum of a bare reduction of bfloat16, which loses what is small. `jnp.sum`
    converts before, and is the same everywhere."""
    (x,) = numbers(dtype, 1)

    def bare(x):
        return lax.reduce(x, dtype.type(0), lax.add, (1,))

    exact = x.astype(float).sum(1)
    compare(ours(bare, x), exact.astype(F32).astype(dtype), ulp=1)
    check_rule(lambda x: (jnp.sum(x, 1), jnp.mean(x, 1)), x, ulp=1)
    small = float(ml_dtypes.finfo(dtype).eps) / 2
    row = np.array([[1] + [small] * 30], dtype)
    assert ours(bare, row) == np.asarray(1 + 30 * small).astype(dtype) > 1
