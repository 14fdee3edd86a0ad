"""Softmax, layer norm and RMS norm: in blocks of rows, and those for GPU in JAX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas.ops.gpu import layer_norm as gpu_layer_norm
from jax.experimental.pallas.ops.gpu import rms_norm as gpu_rms_norm
from jax.experimental.pallas.ops.gpu import softmax as gpu_softmax

from kernels.kernel import Built, Kernel, gradients, normal


def softmax_kernel(x_ref, out_ref):
    weights = jnp.exp(x_ref[...] - jnp.max(x_ref[...], axis=1, keepdims=True))
    out_ref[...] = weights / jnp.sum(weights, axis=1, keepdims=True)


def layer_norm_kernel(x_ref, gain_ref, bias_ref, out_ref):
    centred = x_ref[...] - jnp.mean(x_ref[...], axis=1, keepdims=True)
    variance = jnp.mean(centred * centred, axis=1, keepdims=True)
    out_ref[...] = centred * jax.lax.rsqrt(variance + 1e-6) * gain_ref[...] + bias_ref[...]


def by_rows(kernel: Callable[..., None], rows: int, columns: int, extra: int = 0) -> Built:
    """A kernel on blocks of 8 rows; ``extra`` operands are one row, the same for all."""
    spec = pl.BlockSpec((8, columns), lambda i: (i, 0))
    row = pl.BlockSpec((1, columns), lambda i: (0, 0))
    f = pl.pallas_call(
        kernel,
        jax.ShapeDtypeStruct((rows, columns), jnp.float32),
        grid=(rows // 8,),
        in_specs=[spec] + [row] * extra,
        out_specs=spec,
    )
    return f, (normal(rows, columns), *(normal(1, columns, seed=1 + i) for i in range(extra)))


def on_gpu(norm: Callable[..., Any], transform: Any = lambda f: f) -> Built:
    args = normal(4, 32, 512), normal(512, seed=1), normal(512, seed=2)
    return transform(lambda *args: norm(*args)), args


KERNELS: dict[str, Kernel] = {
    "softmax 256x1024": Kernel(lambda: by_rows(softmax_kernel, 256, 1024)),
    "layer norm 512x1024": Kernel(lambda: by_rows(layer_norm_kernel, 512, 1024, extra=2)),
    "GPU softmax 256x1024": Kernel(lambda: (gpu_softmax.softmax, (normal(256, 1024),))),
    "GPU layer norm 4x32x512": Kernel(lambda: on_gpu(gpu_layer_norm.layer_norm)),
    "GPU layer norm 4x32x512, gradient": Kernel(
        lambda: on_gpu(gpu_layer_norm.layer_norm, gradients), rtol=1e-4
    ),
    "GPU RMS norm 4x32x512": Kernel(lambda: on_gpu(gpu_rms_norm.rms_norm)),
}
