"""Grids: small work in many cells, a tiny kernel called often, loops, vmap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.kernel import Built, Kernel, integers, normal


def add_kernel(x_ref, y_ref, out_ref):
    out_ref[...] = x_ref[...] + y_ref[...]


def vector_add(blocks: int, block: int) -> Built:
    spec = pl.BlockSpec((block,), lambda i: (i,))
    size = blocks * block
    f = pl.pallas_call(
        add_kernel,
        jax.ShapeDtypeStruct((size,), jnp.float32),
        grid=(blocks,),
        in_specs=[spec, spec],
        out_specs=spec,
    )
    return f, (normal(size), normal(size, seed=1))


def add_of_eight() -> Built:
    f = pl.pallas_call(add_kernel, jax.ShapeDtypeStruct((8,), jnp.float32))
    return f, (normal(8), normal(8, seed=1))


def transpose(size: int, block: int) -> Built:
    def kernel(x_ref, out_ref):
        out_ref[...] = x_ref[...].T

    f = pl.pallas_call(
        kernel,
        jax.ShapeDtypeStruct((size, size), jnp.float32),
        grid=(size // block, size // block),
        in_specs=[pl.BlockSpec((block, block), lambda i, j: (i, j))],
        out_specs=pl.BlockSpec((block, block), lambda i, j: (j, i)),
    )
    return f, (normal(size, size),)


def columns_summed(blocks: int) -> Built:
    """Each cell adds to what the cells before it left in the result."""

    def kernel(x_ref, out_ref):
        @pl.when(pl.program_id(0) == 0)
        def _start():
            out_ref[...] = jnp.zeros_like(out_ref)

        out_ref[...] += x_ref[...]

    f = pl.pallas_call(
        kernel,
        jax.ShapeDtypeStruct((8, 128), jnp.int32),
        grid=(blocks,),
        in_specs=[pl.BlockSpec((8, 128), lambda i: (i, 0))],
        out_specs=pl.BlockSpec((8, 128), lambda i: (0, 0)),
    )
    return f, (integers(-100, 100, blocks * 8, 128),)


def polynomials(cells: int) -> Built:
    """A grid of three axes, in which each cell's work depends on where it is."""

    def kernel(x_ref, out_ref):
        i, j, k = (pl.program_id(axis).astype(jnp.float32) for axis in range(3))
        x = x_ref[...]
        out_ref[...] = (i * x + j) * x + k

    block = pl.BlockSpec((None, None, None, 8, 16), lambda i, j, k: (i, j, k, 0, 0))
    shape = (cells, cells, cells, 8, 16)
    f = pl.pallas_call(
        kernel,
        jax.ShapeDtypeStruct(shape, jnp.float32),
        grid=(cells, cells, cells),
        in_specs=[block],
        out_specs=block,
    )
    return f, (normal(*shape),)


def diffusion(steps: int) -> Built:
    """A loop inside of the kernel: heat spreading over a plane whose edges meet."""

    def kernel(x_ref, out_ref):
        def step(_, x):
            near = pltpu.roll(x, 1, axis=0) + pltpu.roll(x, x.shape[0] - 1, axis=0)
            near += pltpu.roll(x, 1, axis=1) + pltpu.roll(x, x.shape[1] - 1, axis=1)
            return 0.5 * x + 0.125 * near

        out_ref[...] = lax.fori_loop(0, steps, step, x_ref[...])

    f = pl.pallas_call(kernel, jax.ShapeDtypeStruct((128, 256), jnp.float32))
    return f, (normal(128, 256),)


def gelu(x: jax.Array) -> jax.Array:
    def kernel(x_ref, out_ref):
        x = x_ref[...]
        out_ref[...] = 0.5 * x * (1 + jnp.tanh(0.7978846 * (x + 0.044715 * x * x * x)))

    spec = pl.BlockSpec((64, 256), lambda i: (i, 0))
    return pl.pallas_call(
        kernel,
        jax.ShapeDtypeStruct(x.shape, x.dtype),
        grid=(x.shape[0] // 64,),
        in_specs=[spec],
        out_specs=spec,
    )(x)


def tangent(f: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], Any]:
    return lambda x: jax.jvp(f, (x,), (jnp.ones_like(x),))


KERNELS: dict[str, Kernel] = {
    "vector add, 64 blocks of 4096": Kernel(lambda: vector_add(64, 4096)),
    "vector add, 4096 blocks of 256": Kernel(lambda: vector_add(4096, 256)),
    "add of 8 numbers, 10,000 calls": Kernel(add_of_eight, calls=10_000),
    "transpose 2048, blocks of 64": Kernel(lambda: transpose(2048, 64)),
    "columns summed over 1,024 cells": Kernel(lambda: columns_summed(1024)),
    "polynomials, grid 12x12x12": Kernel(lambda: polynomials(12)),
    "diffusion 128x256, 100 steps": Kernel(lambda: diffusion(100)),
    "gelu 512x256": Kernel(lambda: (gelu, (normal(512, 256),))),
    "gelu 512x256, vmap over 4": Kernel(lambda: (jax.vmap(gelu), (normal(4, 512, 256),))),
    "gelu 512x256, tangent": Kernel(lambda: (tangent(gelu), (normal(512, 256),))),
}
