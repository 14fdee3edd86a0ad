"""Kernels to look at, as scripts would have them: each function runs one."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu


def numbers(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def matmul_kernel(x_ref, y_ref, o_ref, acc_ref):
    @pl.when(pl.program_id(2) == 0)
    def _():
        acc_ref[...] = jnp.zeros_like(acc_ref)

    acc_ref[...] += jnp.dot(x_ref[...], y_ref[...])

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        o_ref[...] = acc_ref[...]


@jax.jit
def matmul(x, y):
    return pl.pallas_call(
        matmul_kernel,
        grid=(4, 4, 4),
        in_specs=[
            pl.BlockSpec((8, 16), lambda i, j, k: (i, k)),
            pl.BlockSpec((16, 32), lambda i, j, k: (k, j)),
        ],
        out_specs=pl.BlockSpec((8, 32), lambda i, j, k: (i, j)),
        out_shape=jax.ShapeDtypeStruct((32, 128), jnp.float32),
        scratch_shapes=[pltpu.VMEM((8, 32), jnp.float32)],
        interpret=True,
    )(x, y)


def add_kernel(x_ref, y_ref, o_ref):
    o_ref[...] = x_ref[...] + y_ref[...]


@functools.partial(jax.jit, static_argnames="blocks")
def add(x, y, blocks):
    spec = pl.BlockSpec((x.size // blocks,), lambda i: (i,))
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return pl.pallas_call(
        add_kernel, grid=(blocks,), in_specs=[spec, spec], out_specs=spec, out_shape=shape,
        interpret=True,
    )(x, y)  # fmt: skip


def pick_kernel(rows_ref, x_ref, o_ref):
    o_ref[...] = x_ref[...] * 2


@jax.jit
def pick(rows, x):
    return pl.pallas_call(
        pick_kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(rows.size,),
            in_specs=[pl.BlockSpec((1, x.shape[1]), lambda i, rows: (rows[i], 0))],
            out_specs=pl.BlockSpec((1, x.shape[1]), lambda i, rows: (i, 0)),
        ),
        out_shape=jax.ShapeDtypeStruct((rows.size, x.shape[1]), x.dtype),
        interpret=True,
    )(rows, x)


def copies_kernel(x_hbm, o_hbm, buf, sem):
    def copy_in(i, slot):
        return pltpu.make_async_copy(x_hbm.at[pl.ds(i * 8, 8)], buf.at[slot], sem.at[slot])

    copy_in(0, 0).start()

    @pl.loop(0, 4)
    def _(i):
        slot = i % 2

        @pl.when(i < 3)
        def _():
            copy_in(i + 1, 1 - slot).start()

        copy_in(i, slot).wait()
        buf[slot] = buf[slot] * 2
        out = pltpu.make_async_copy(buf.at[slot], o_hbm.at[pl.ds(i * 8, 8)], sem.at[2])
        out.start()
        out.wait()


@jax.jit
def copies(x):
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    return pl.pallas_call(
        copies_kernel, in_specs=[anywhere], out_specs=anywhere,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        scratch_shapes=[pltpu.VMEM((2, 8, x.shape[1]), x.dtype), pltpu.SemaphoreType.DMA((3,))],
    )(x)  # fmt: skip
