"""Sorting rules against JAX."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.rules import Unsupported
from tests.oracle import check_rule, is_float

INTS = [np.bool_, np.int8, np.uint8, np.int32, np.uint32, ml_dtypes.int4, ml_dtypes.uint4]
WIDE = [np.int64, np.uint64, np.float64]
FLOATS = [np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn,
          ml_dtypes.float8_e5m2]  # fmt: skip
names = {"ids": lambda d: np.dtype(d).name}
rng = np.random.default_rng(0)


def array(shape, dtype):
    """Random values with many ties; floats with NaNs of both signs, zeros of both, infinities."""
    dtype = np.dtype(dtype)
    values = rng.integers(-6, 7, shape)
    if dtype.kind == "c":
        parts = np.stack([array(shape, np.float32), array(shape, np.float32)], -1)
        return parts.view(np.complex64)[..., 0].astype(dtype)
    if not is_float(dtype):
        extremes = rng.integers(0, 2**62, shape) * np.where(rng.random(shape) < 0.5, 4, 0)
        return np.where(rng.random(shape) < 0.2, extremes, values).astype(dtype)
    special = np.array([np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, -1e-40])
    picked = special[rng.integers(0, len(special), shape)]
    return np.where(rng.random(shape) < 0.4, picked, values).astype(dtype)


@pytest.mark.parametrize("dtype", INTS + WIDE + FLOATS + [np.complex64], **names)
def test_sort_for_every_dtype(dtype):
    def f(x, y, index):
        return (
            lax.sort(x),
            lax.sort(x, dimension=0),
            lax.sort((x, index), num_keys=1),
            lax.sort((x, index), dimension=0, num_keys=1),
            lax.sort((x, y), num_keys=2),
            lax.sort((y, x, index), dimension=0, num_keys=2),
        )

    x, y = array((3, 50), dtype), array((3, 50), dtype)
    check_rule(f, x, y, np.arange(150, dtype=np.int32).reshape(3, 50))


@pytest.mark.parametrize("dtype", ["e4m3b11fnuz", "e4m3fnuz", "e5m2fnuz"])
def test_types_that_xla_orders_otherwise_are_refused(dtype):
    x = np.array([1, np.nan, -2, 3], getattr(ml_dtypes, f"float8_{dtype}"))
    assert np.isnan(jax.jit(lax.sort)(x)[0].astype(np.float32))
    for f in (lax.sort, lambda x: lax.top_k(x, 2), lambda x: lax.approx_max_k(x, 2)):
        with pytest.raises(Unsupported, match=f"of float8_{dtype}"):
            lower(jax.make_jaxpr(f)(x))
    # What they order may be of any type.
    check_rule(lambda x: lax.sort((np.array([3, 1, 2, 0], np.int32), x)), x)


@pytest.mark.parametrize("shape", [(0,), (1,), (3, 0), (0, 3), (2, 3, 4), (2, 2, 5, 3)], ids=str)
def test_sort_for_every_rank(shape):
    def f(x, y, index):
        axes = range(len(shape))
        return (
            [lax.sort(x, dimension=d) for d in axes],
            [lax.sort((x, index), dimension=d, num_keys=1) for d in axes],
            [lax.sort((x, y, index), dimension=d, num_keys=2) for d in axes],
        )

    x, y = array(shape, np.float32), array(shape, np.int8)
    check_rule(f, x, y, np.arange(math.prod(shape), dtype=np.int32).reshape(shape))


def test_sorts_of_pallas_kernels():
    """Sorts of (8, 128) tiles along either axis, and what jnp makes of them."""

    def f(x, k):
        return (
            jnp.sort(x, axis=1),
            jnp.sort(x, axis=0, descending=True),
            jnp.argsort(x, axis=1),
            jnp.argsort(k, axis=0, descending=True),
            lax.sort((k, x, -x), num_keys=1),
            jnp.lexsort((x, k)),
            jnp.median(k),
            lax.sort_key_val(k, x, dimension=0),
        )

    check_rule(f, array((8, 128), np.float32), array((8, 128), np.int32))


def test_an_unstable_sort_is_a_sort():
    """Which of two equal keys comes first is up to XLA, so only keys and sets can be compared."""
    keys = rng.integers(0, 5, (200,)).astype(np.int32)

    def f(k, v):
        k, v = lax.sort((k, v), num_keys=1, is_stable=False)
        return k, lax.sort((k, v), num_keys=2), lax.sort(v, is_stable=False)

    check_rule(f, keys, np.arange(200, dtype=np.int32))


@settings(max_examples=10, derandomize=True, deadline=None)
@given(st.data())
def test_sort(data):
    shape = tuple(data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=3)))
    dtypes = data.draw(st.lists(st.sampled_from(INTS + FLOATS), min_size=1, max_size=4))
    num_keys = data.draw(st.integers(1, len(dtypes)))
    dimension = data.draw(st.integers(0, len(shape) - 1))
    check_rule(
        lambda *xs: lax.sort(xs, dimension=dimension, num_keys=num_keys),
        *[array(shape, d) for d in dtypes],
    )


def top_k(x, k, axis):
    """lax.top_k along any axis; before JAX 0.9 it only knew the last."""
    x = jnp.moveaxis(x, axis, -1)
    return [jnp.moveaxis(result, -1, axis) for result in lax.top_k(x, k)]


# XLA can't compare int4 in top_k.
@pytest.mark.parametrize("dtype", INTS[:-2] + WIDE + FLOATS, **names)
def test_top_k_for_every_dtype(dtype):
    x = array((3, 40), dtype)
    if dtype is ml_dtypes.bfloat16:
        # XLA takes its subnormals for zeros on processors with AVX-512's instructions for it only.
        x[np.abs(x.astype(np.float32)) < ml_dtypes.finfo(dtype).smallest_normal] = 0
    check_rule(lambda x: [lax.top_k(x, k) for k in (0, 1, 7, 39, 40)], x)


@pytest.mark.parametrize("shape", [(1,), (3, 2), (2, 3, 4), (2, 0, 3)], ids=str)
def test_top_k_for_every_rank(shape):
    def f(x):
        return [top_k(x, k, d) for d, n in enumerate(shape) for k in range(0, n + 1, 2)]

    check_rule(f, array(shape, np.float32))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], **names)
def test_approx_top_k(dtype):
    """On CPUs the approximation is exact; NaNs and ties are left out, which XLA orders as it
    likes before JAX 0.12."""
    x = rng.permuted(np.arange(-100, 100.0).reshape(2, 100), axis=1).astype(dtype)

    def f(x):
        return (
            lax.approx_max_k(x, 7),
            lax.approx_min_k(x, 100),
            lax.approx_max_k(x, 2, reduction_dimension=0),
            lax.approx_min_k(x, 1, reduction_dimension=-2),
        )

    check_rule(f, x)


def test_approx_top_k_without_aggregation_is_unsupported():
    def f(x):
        return lax.approx_max_k(x, 7, aggregate_to_topk=False)

    with pytest.raises(Unsupported, match="approx_top_k.*aggregate_to_topk"):
        lower(jax.make_jaxpr(f)(np.zeros(1000, np.float32)))
