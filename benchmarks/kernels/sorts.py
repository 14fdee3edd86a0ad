"""Sorting networks: the example's, and those of oliverdutton/tallax."""

from __future__ import annotations

import functools
from typing import Any

import bitonic_sort_benchmark
import jax
import jax.numpy as jnp
import numpy as np

from kernels.kernel import Built, Kernel, integers, normal


def bitonic(x: jax.Array) -> Built:
    return bitonic_sort_benchmark.sort, (x,)


def tallax_sort(x: jax.Array, **options: Any) -> Built:
    from tallax import tax

    return lambda x: tax.sort([x], num_keys=1, interpret=True, **options), (x,)


def tallax_top_k(x: jax.Array, k: int) -> Built:
    from tallax import tax

    return lambda x: tax.top_k(x, k, interpret=True), (x,)


def tallax_cumsum(x: jax.Array) -> Built:
    from tallax import tax

    return lambda x: tax.cumsum(x, axis=1, interpret=True), (x,)


def sorted_rows(x: np.ndarray) -> list[np.ndarray]:
    return [np.sort(x, axis=1)]


def sorted_rows_and_order(x: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(x, axis=1, kind="stable").astype(np.int32)
    return [np.take_along_axis(x, order, axis=1), order]


def whole(*shape: int, dtype: Any = jnp.int32) -> jax.Array:
    return integers(-(2**31), 2**31, *shape, dtype=dtype)


tallax = functools.partial(Kernel, needs="tallax", reference=sorted_rows)

KERNELS: dict[str, Kernel] = {
    "bitonic sort 64x128 f32": Kernel(lambda: bitonic(normal(64, 128))),
    "bitonic sort 64x128 bf16": Kernel(lambda: bitonic(normal(64, 128, dtype=jnp.bfloat16))),
    "bitonic sort 8x1024 i32": Kernel(lambda: bitonic(whole(8, 1024))),
    "tallax sort 8x128 f32": tallax(lambda: tallax_sort(normal(8, 128))),
    "tallax sort 8x128 bf16": tallax(lambda: tallax_sort(normal(8, 128, dtype=jnp.bfloat16))),
    "tallax sort 8x128 i32": tallax(lambda: tallax_sort(whole(8, 128))),
    "tallax argsort 8x128 f32": tallax(
        lambda: tallax_sort(normal(8, 128), return_argsort=True),
        reference=sorted_rows_and_order,
    ),
    "tallax sort 8x8192 f32": tallax(lambda: tallax_sort(normal(8, 8192))),
}
