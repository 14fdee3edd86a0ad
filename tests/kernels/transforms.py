"""Kernels under JAX's transformations, and among other operations of a function."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tests.kernels.harness import case, floats, integers, pallas_call, struct


def add_one(x):
    def kernel(x, out):
        out[...] = x[...] + 1

    block = (4,) + x.shape[1:]
    spec = pl.BlockSpec(block, lambda i: (i,) + (0,) * (x.ndim - 1))
    return pallas_call(
        kernel, struct(*x.shape, dtype=x.dtype), grid=(x.shape[0] // 4,),
        in_specs=[spec], out_specs=spec,
    )(x)


def scaled(x, scale):
    """x * scale, where scale is a single row: a kernel with two operands."""

    def kernel(x, scale, out):
        out[...] = x[...] * scale[...]

    return pallas_call(
        kernel, struct(*x.shape, dtype=x.dtype), grid=(2,),
        in_specs=[
            pl.BlockSpec((x.shape[0] // 2, x.shape[1]), lambda i: (i, 0)),
            pl.BlockSpec((1, x.shape[1]), lambda i: (0, 0)),
        ],
        out_specs=pl.BlockSpec((x.shape[0] // 2, x.shape[1]), lambda i: (i, 0)),
    )(x, scale)


@case()
def vmap_of_kernel():
    return jax.vmap(add_one), (integers(0, 3, 8, 4),)


@case()
def vmap_twice_other_axes():
    return jax.vmap(jax.vmap(add_one, in_axes=1, out_axes=1), in_axes=2), (
        integers(0, 8, 3, 2),
    )


@case()
def vmap_with_unbatched_operand():
    return jax.vmap(scaled, in_axes=(0, None)), (floats(0, 3, 8, 4), floats(1, 1, 4))


@case()
def vmap_of_kernel_with_scratch():
    def f(x):
        def kernel(x, out, total):
            @pl.when(pl.program_id(0) == 0)
            def _():
                total[...] = jnp.zeros_like(total)

            total[...] += x[...]
            out[...] = total[...]

        spec = pl.BlockSpec((1, 8), lambda i: (i, 0))
        return pallas_call(
            kernel, struct(4, 8, dtype=np.int32), grid=(4,), in_specs=[spec], out_specs=spec,
            scratch_shapes=[pltpu.VMEM((1, 8), jnp.int32)],
        )(x)

    return jax.vmap(f), (integers(0, 3, 4, 8),)


@jax.custom_vjp
def square(x):
    def kernel(x, out):
        out[...] = x[...] * x[...]

    return pallas_call(kernel, struct(*x.shape))(x)


def _square_backward(x, g):
    def kernel(x, g, out):
        out[...] = 2 * x[...] * g[...]

    return (pallas_call(kernel, struct(*x.shape))(x, g),)


square.defvjp(lambda x: (square(x), x), _square_backward)


@case()
def gradient_by_custom_vjp():
    return jax.value_and_grad(lambda x: jnp.sum(square(x) * 3)), (
        integers(0, 8, 8, dtype=np.float32),
    )


@case()
def jvp_of_kernel():
    return lambda x, dx: jax.jvp(lambda x: scaled(x, x[:1]), (x,), (dx,)), (
        integers(0, 8, 4, dtype=np.float32), integers(1, 8, 4, dtype=np.float32),
    )


@case()
def kernel_in_scan_while_and_cond():
    def f(x):
        x, rows = jax.lax.scan(lambda c, _: (add_one(c), c[0]), x, None, length=3)
        x = jax.lax.while_loop(lambda v: v[0, 0] < 20, add_one, x)
        return jax.lax.cond(x[0, 0] > 0, add_one, lambda v: v * 2, x), rows

    return f, (integers(0, 8, 4),)


@case()
def kernels_among_other_operations():
    @jax.jit
    def inner(x):
        return add_one(x) * 2

    def f(x, y):
        padded = jnp.pad(x, ((0, 2), (0, 0)), constant_values=7)
        both = inner(jnp.concatenate([padded, y]))
        order = jnp.argsort(both[:, 0], stable=True)
        return add_one(both[order])[1:-1], jnp.cumsum(both, axis=0)

    return f, (integers(0, 6, 4), integers(1, 8, 4))


@case()
def rematerialised_kernel():
    return jax.grad(jax.checkpoint(lambda x: jnp.sum(square(x) * square(x + 1)))), (
        integers(0, 8, 4, dtype=np.float32),
    )
