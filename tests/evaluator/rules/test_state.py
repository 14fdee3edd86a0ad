"""Loads and stores against JAX's interpreter, where whole kernels don't go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.rules import Unsupported
from tests.oracle import check_kernel

load = getattr(plgpu, "load", None) or pl.load
store = getattr(plgpu, "store", None) or pl.store


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_a_masked_load_with_a_weakly_typed_other_under_strict_promotion(dtype):
    def kernel(x, o):
        mask = jnp.arange(8) < 5
        o[...] = load(x.at[pl.ds(0, 8)], mask=mask, other=0)

    x = jnp.arange(1, 9).astype(dtype)
    with jax.numpy_dtype_promotion("strict"):
        check_kernel(kernel, jax.ShapeDtypeStruct((8,), x.dtype), x)


def test_a_masked_store_that_sticks_out_of_its_ref():
    def kernel(start, x, o):
        o[...] = x[...]
        at = jnp.arange(8) + start[0]
        store(o.at[pl.ds(start[0], 8)], jnp.full((8,), 7.0, jnp.float32), mask=at < 12)

    x = jnp.arange(12, dtype=jnp.float32)
    check_kernel(kernel, jax.ShapeDtypeStruct((12,), x.dtype), jnp.int32([6]), x)


def test_an_index_array_beside_slices_and_scalars():
    def kernel(x, rows, o):
        o[...] = x[rows[...], 1, :]
        x[rows[...], 0, :] = o[...] + 1
        o[...] += x[rows[...], 0, :]

    x = jnp.arange(5 * 2 * 4, dtype=jnp.int32).reshape(5, 2, 4)
    rows = jnp.int32([3, 0, 4])
    check_kernel(kernel, jax.ShapeDtypeStruct((3, 4), x.dtype), x, rows)


@pytest.mark.parametrize("start", [0, 3, 7, -2])
def test_a_dynamic_start_of_a_strided_slice(start):
    def kernel(at, x, o):
        o[...] = x[pl.ds(at[0], 4, 2)]

    x = jnp.arange(16, dtype=jnp.float32)
    check_kernel(kernel, jax.ShapeDtypeStruct((4,), x.dtype), jnp.int32([start]), x)


def test_a_store_larger_than_its_ref_is_refused():
    def kernel(start, x, o):
        # JAX itself refuses such a slice from a constant, since 0.12.
        o[pl.ds(start[0], 12)] = jnp.concatenate([x[...], x[:4]])

    out = jax.ShapeDtypeStruct((8,), jnp.float32)
    call = pl.pallas_call(kernel, out_shape=out)
    with pytest.raises(Unsupported, match="ref: a slice of 12 elements of a dimension of 8"):
        lower(jax.make_jaxpr(call)(jnp.zeros(1, jnp.int32), jnp.zeros(8)))


def test_an_index_of_booleans_is_refused_as_jax_refuses_it():
    def kernel(x, o):
        o[...] = x[x[:, 0] > 0]

    x = jnp.ones((8, 128))
    with pytest.raises(Unsupported, match="get: JAX's own rule raises .*(indices|BooleanIndex)"):
        lower(jax.make_jaxpr(pl.pallas_call(kernel, out_shape=x))(x))


def test_a_condition_sees_what_the_body_before_it_wrote():
    """JAX's interpreter does not: it reads the ref once, before the loop, and counts to 100 where
    a TPU, and this, stops at ten."""

    def kernel(x, o):
        def add_one(count):
            x[0] += 1.0
            return count + 1

        count = lax.while_loop(lambda count: (x[0] < 10) & (count < 100), add_one, 0)
        o[0] = count.astype(jnp.float32)

    x = np.zeros(1, np.float32)
    call = pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct((1,), np.float32))
    assert Executable(lower(jax.make_jaxpr(call)(x)))(x)[0] == 10
