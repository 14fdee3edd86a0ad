"""The kernels that are measured: each makes a function of arrays, and its arguments."""

from __future__ import annotations

import functools
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

sys.path.append(str(pathlib.Path(__file__).parents[1] / "examples"))

import attention  # noqa: E402
import bitonic_sort_benchmark  # noqa: E402
import matmul  # noqa: E402

# A kernel's function takes its arrays by position; jax.jit(...).trace must work on it.
Built = tuple[Any, tuple[Any, ...]]


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def vector_add(blocks: int, block: int) -> Built:
    def kernel(x, y, out):
        out[...] = x[...] + y[...]

    spec = pl.BlockSpec((block,), lambda i: (i,))
    size = blocks * block
    f = pl.pallas_call(
        kernel,
        jax.ShapeDtypeStruct((size,), jnp.float32),
        grid=(blocks,),
        in_specs=[spec, spec],
        out_specs=spec,
        interpret=True,
    )
    return jax.jit(f), (normal(size), normal(size))


def softmax(rows: int, columns: int, block: int) -> Built:
    def kernel(x, out):
        weights = jnp.exp(x[...] - jnp.max(x[...], axis=1, keepdims=True))
        out[...] = weights / jnp.sum(weights, axis=1, keepdims=True)

    spec = pl.BlockSpec((block, columns), lambda i: (i, 0))
    f = pl.pallas_call(
        kernel,
        jax.ShapeDtypeStruct((rows, columns), jnp.float32),
        grid=(rows // block,),
        in_specs=[spec],
        out_specs=spec,
        interpret=True,
    )
    return jax.jit(f), (normal(rows, columns),)


def layer_norm(rows: int, columns: int, block: int) -> Built:
    def kernel(x, gain, bias, out):
        centred = x[...] - jnp.mean(x[...], axis=1, keepdims=True)
        variance = jnp.mean(centred * centred, axis=1, keepdims=True)
        out[...] = centred * jax.lax.rsqrt(variance + 1e-6) * gain[...] + bias[...]

    spec = pl.BlockSpec((block, columns), lambda i: (i, 0))
    row = pl.BlockSpec((1, columns), lambda i: (0, 0))
    f = pl.pallas_call(
        kernel,
        jax.ShapeDtypeStruct((rows, columns), jnp.float32),
        grid=(rows // block,),
        in_specs=[spec, row, row],
        out_specs=spec,
        interpret=True,
    )
    return jax.jit(f), (normal(rows, columns), normal(1, columns), normal(1, columns))


def example(function: Any, *args: Any, **static: Any) -> Built:
    return jax.jit(functools.partial(function, interpret=True, **static)), args


def tallax_sort(lanes: int) -> Built:
    """A sort by oliverdutton/tallax, which must be on PYTHONPATH."""
    from tallax import tax

    return jax.jit(lambda x: tax.sort([x], num_keys=1, interpret=True)), (normal(8, lanes),)


KERNELS: dict[str, Callable[[], Built]] = {
    "bitonic sort 64x128": lambda: example(bitonic_sort_benchmark.sort, normal(64, 128)),
    "matmul 512, blocks of 128": lambda: example(
        matmul.matmul, normal(512, 512), normal(512, 512)
    ),
    "flash attention 4x512x128": lambda: example(attention.attention, *normal(3, 4, 512, 128)),
    "vector add, 64 blocks of 4096": lambda: vector_add(64, 4096),
    "vector add, 4096 blocks of 256": lambda: vector_add(4096, 256),
    "softmax 256x1024": lambda: softmax(256, 1024, 8),
    "layer norm 512x1024": lambda: layer_norm(512, 1024, 8),
    "tallax sort 8x128": lambda: tallax_sort(128),
    "tallax sort 8x8192": lambda: tallax_sort(8192),
}
