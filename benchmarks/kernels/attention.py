"""Attention: the kernels in jax.experimental.pallas.ops, for TPU and for GPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.gpu import attention as gpu_attention
from jax.experimental.pallas.ops.gpu import decode_attention
from jax.experimental.pallas.ops.gpu import paged_attention as gpu_paged
from jax.experimental.pallas.ops.tpu import flash_attention
from jax.experimental.pallas.ops.tpu.paged_attention import paged_attention
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import (
    ragged_paged_attention,
    ref_ragged_paged_attention,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)

from kernels.kernel import Built, Kernel, gradients, normal

Transform = Callable[[Callable[..., Any]], Callable[..., Any]]


def same(f: Callable[..., Any]) -> Callable[..., Any]:
    return f


def three(*shape: int, dtype: Any = jnp.float32) -> tuple[jax.Array, ...]:
    return tuple(normal(*shape, dtype=dtype, seed=seed) for seed in range(3))


def flash(length: int, transform: Transform = same, dtype: Any = jnp.float32) -> Built:
    f = functools.partial(flash_attention.flash_attention, causal=True, sm_scale=128**-0.5)
    return transform(lambda q, k, v: f(q, k, v)), three(1, 4, length, 128, dtype=dtype)


def splash(length: int, transform: Transform = same) -> Built:
    heads = 2
    mask = splash_attention_mask.MultiHeadMask(
        [splash_attention_mask.CausalMask((length, length)) for _ in range(heads)]
    )
    attend = splash_attention_kernel.make_splash_mha_single_device(mask)
    return transform(lambda q, k, v: attend(q * 128**-0.5, k, v)), three(heads, length, 128)


def pages(sequences: int, each: int) -> jax.Array:
    order = np.random.default_rng(2).permutation(sequences * each)
    return jnp.asarray(order.reshape(sequences, each), jnp.int32)


def paged() -> Built:
    f = functools.partial(paged_attention, pages_per_compute_block=4)
    kept = (normal(2, 64, 16, 128, seed=seed) for seed in (1, 2))
    lengths = jnp.asarray([128, 70, 1, 256], jnp.int32)
    return lambda *args: f(*args), (normal(4, 8, 128), *kept, lengths, pages(4, 16))


def ragged() -> Built:
    f = functools.partial(
        ragged_paged_attention,
        num_kv_pages_per_block=4,
        num_queries_per_block=32,
        sm_scale=128**-0.5,
    )
    return lambda *args: f(*args), (
        normal(128, 8, 128),
        normal(64, 16, 4, 128, seed=1),
        jnp.asarray([160, 32, 200, 0], jnp.int32),
        pages(4, 16),
        jnp.asarray([0, 64, 65, 128, 128], jnp.int32),
        jnp.asarray([3], jnp.int32),
    )


def ragged_reference(*args: np.ndarray) -> list[np.ndarray]:
    arrays = map(jnp.asarray, args)
    return [np.asarray(ref_ragged_paged_attention(*arrays, sm_scale=128**-0.5))]


def gpu_mha(transform: Transform = same) -> Built:
    def f(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return gpu_attention.mha(q, k, v, None, sm_scale=0.125, causal=True)

    return transform(f), three(1, 384, 2, 64)


def gpu_decode() -> Built:
    return decode_attention.mqa, (
        normal(2, 16, 64),
        normal(2, 1024, 64, seed=1),
        normal(2, 1024, 64, seed=2),
    )


def gpu_decode_paged() -> Built:
    kept = (normal(2, 64, 16, 64, seed=seed) for seed in (1, 2))
    lengths = jnp.asarray([250, 130], jnp.int32)
    return gpu_paged.paged_attention, (normal(2, 8, 64), *kept, pages(2, 32), lengths)


KERNELS: dict[str, Kernel] = {
    "flash attention 4x512x128": Kernel(lambda: flash(512)),
    "flash attention 4x512x128 bf16": Kernel(
        lambda: flash(512, dtype=jnp.bfloat16), rtol=8e-3
    ),
    "flash attention 4x256x128, gradient": Kernel(lambda: flash(256, gradients), rtol=1e-4),
    "splash attention 2x512x128": Kernel(lambda: splash(512)),
    "splash attention 2x256x128, gradient": Kernel(lambda: splash(256, gradients), rtol=1e-4),
    "paged attention": Kernel(paged),
    "ragged paged attention": Kernel(ragged, reference=ragged_reference, for_device=True),
    "GPU attention 384x2x64": Kernel(gpu_mha),
    "GPU attention 384x2x64, gradient": Kernel(lambda: gpu_mha(gradients), rtol=1e-4),
    "GPU decode attention": Kernel(gpu_decode),
    "GPU paged attention": Kernel(gpu_decode_paged),
}
