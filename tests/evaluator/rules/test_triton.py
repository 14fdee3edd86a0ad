"""Pallas Triton's atomic operations against JAX's interpreter, where that has them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.rules import Unsupported
from tests.kernels.harness import evaluate
from tests.oracle import compare


def operation(name):
    """They moved from pallas to pallas.triton."""
    return getattr(plgpu, name, None) or getattr(pl, name)


X = jnp.array([3, -7, 12, 5, 0, 6, -1, 9], jnp.int32)
Y = jnp.array([1, -8, 10, 12, -3, 6, 2, 4], jnp.int32)


def outputs(kernel, *args, want=None, **kwargs):
    """Checks what the kernel makes of a copy of X, and of a second output."""
    shape = jax.ShapeDtypeStruct(X.shape, X.dtype)

    def both(x, *rest_and_outs):
        *rest, o, old = rest_and_outs
        pl.when(pl.program_id(0) == 0)(lambda: o.__setitem__(..., x[...]))
        kernel(*rest, o, old)

    call = pl.pallas_call(
        both, out_shape=(shape, shape), grid=kwargs.pop("grid", (1,)), interpret=True
    )
    want = jax.jit(call)(X, *args) if want is None else want
    for got in evaluate(call, X, *args):
        for one, other in zip(got, want, strict=True):
            compare(one, np.asarray(other))


@pytest.mark.parametrize("name", ["atomic_add", "atomic_max", "atomic_min"])
def test_of_a_slice_and_of_an_element(name):
    def kernel(y, o, old):
        old[pl.ds(0, 4)] = operation(name)(o, (pl.ds(2, 4),), y[pl.ds(1, 4)])
        old[pl.ds(4, 4)] = jnp.full((4,), operation(name)(o, (y[6],), y[3]))

    outputs(kernel, Y)


@pytest.mark.parametrize(
    "name, combine",
    [
        ("atomic_and", np.bitwise_and),
        ("atomic_or", np.bitwise_or),
        ("atomic_xor", np.bitwise_xor),
        ("atomic_xchg", lambda x, y: y),
    ],
)
def test_what_jax_has_no_interpreter_for(name, combine):
    def kernel(y, o, old):
        old[...] = operation(name)(o, (pl.ds(0, 8),), y[...])

    outputs(kernel, Y, want=(combine(X, Y), X))


def test_masked():
    mask = np.array([True, False] * 4)

    def kernel(y, o, old):
        at = jax.lax.broadcasted_iota(jnp.int32, (8,), 0)
        old[...] = operation("atomic_add")(o, (pl.ds(0, 8),), y[...], mask=at % 2 == 0)

    outputs(kernel, Y, want=(np.where(mask, X + Y, X), X))


def test_cells_add_up():
    def kernel(y, o, old):
        old[...] = operation("atomic_add")(o, (pl.ds(0, 8),), y[...])

    outputs(kernel, Y, grid=(3,))


@pytest.mark.parametrize("expected", [12, 13])
def test_compare_and_swap(expected):
    def kernel(x, o, old):
        o[...] = x[...]
        old[...] = operation("atomic_cas")(o, expected, 40)

    shape = jax.ShapeDtypeStruct((), jnp.int32)
    call = pl.pallas_call(kernel, out_shape=(shape, shape), interpret=True)
    for got in evaluate(call, jnp.int32(12)):
        for one, other in zip(got, jax.jit(call)(jnp.int32(12)), strict=True):
            compare(np.asarray(one), np.asarray(other))


def test_at_array_indices_it_is_refused():
    def kernel(o):
        operation("atomic_add")(o, (jax.lax.iota(jnp.int32, 2) // 2,), jnp.ones(2, jnp.int32))

    call = pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct((8,), jnp.int32))
    with pytest.raises(Unsupported, match="atomic_rmw: at array indices"):
        lower(jax.make_jaxpr(call)())
