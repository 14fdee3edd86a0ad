"""Calls each kernel in jax.experimental.pallas.ops that runs on one CPU, and those of the examples.

test_function_cache.py runs this in two processes that share a cache. It prints what became of the
programs of each call, as JSON.
"""

from __future__ import annotations

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.gpu import attention as gpu_attention
from jax.experimental.pallas.ops.gpu import decode_attention, layer_norm, rms_norm, softmax
from jax.experimental.pallas.ops.gpu import paged_attention as gpu_paged
from jax.experimental.pallas.ops.tpu import example_kernel, flash_attention, matmul, megablox
from jax.experimental.pallas.ops.tpu.megablox.ops import backend
from jax.experimental.pallas.ops.tpu.paged_attention import paged_attention
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ragged_paged_attention
from jax.experimental.pallas.ops.tpu.random import philox, threefry
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash,
)
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from pallas_shim.cache import later
from pallas_shim.reports.uses import REPORT

# The examples are on the path, not a package.
attention, bitonic_sort, matmul_example = map(
    importlib.import_module, ("attention", "bitonic_sort_benchmark", "matmul")
)
later.SECONDS = 100  # a busy machine may be slow

rng = np.random.default_rng(0)


def floats(*shape):
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def integers(*values):
    return jnp.array(values, jnp.int32)


def gradients(f, count):
    """The gradients by the first ``count`` arguments."""

    def differentiated(*args):
        by = tuple(range(count))
        return jax.grad(lambda *xs: f(*xs, *args[count:]).sum(), by)(*args[:count])

    return differentiated


def flash(q, k, v):
    return flash_attention.flash_attention(q, k, v, causal=True)


names = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv",
         "block_kv_dkv_compute")  # fmt: skip
attend = splash.make_splash_mha_single_device(
    masks.MultiHeadMask([masks.CausalMask((128, 128))] * 2),
    block_sizes=splash.BlockSizes(**dict.fromkeys(names, 128), use_fused_bwd_kernel=True),
)


def splashed(q, k, v):
    return attend(q, k, v)


def paged(q, keys, values, lengths, table):
    return paged_attention(q, keys, values, lengths, table, pages_per_compute_block=2)


def ragged(q, pages, lengths, table, starts, count):
    return ragged_paged_attention(
        q, pages, lengths, table, starts, count, num_kv_pages_per_block=2, num_queries_per_block=16
    )


def product(x, y):
    return matmul.matmul(x, y, block_shape=(128, 128), block_k=128)


def grouped(x, y, sizes):
    return megablox.gmm(x, y, sizes, jnp.float32, tiling=(128, 128, 128))


def transposed_grouped(x, y, sizes):
    return backend.tgmm(x, y, sizes, jnp.float32, (128, 128, 128))


def mha(q, k, v):
    return gpu_attention.mha(q, k, v, None, sm_scale=0.25, causal=True)


def mqa(q, k, v):
    return decode_attention.mqa(q, k, v, sm_scale=0.2, k_splits=4, return_residuals=True)[0]


def gqa(q, k, v):
    return decode_attention.gqa(q, k, v, sm_scale=0.2, k_splits=4, return_residuals=True)[0]


def gpu_pages(q, keys, values, table, lengths):
    return gpu_paged.paged_attention(
        q, keys, values, table, lengths, pages_per_compute_block=2, k_splits=2
    )


def threefry_bits(key):
    return threefry.plthreefry_random_bits(key, 32, (8, 128))


def philox_bits(key):
    return philox.philox_random_bits(key, 32, (512, 128))


def doubled(x):
    return example_kernel.double(x)


def layer(x, weight, bias):
    return layer_norm.layer_norm(x, weight, bias)


def rms(x, weight, bias):
    return rms_norm.rms_norm(x, weight, bias)


def soft(x):
    return softmax.softmax(x)


HEADS = floats(1, 2, 128, 64), floats(1, 2, 128, 64), floats(1, 2, 128, 64)
SINGLE = floats(2, 128, 64), floats(2, 128, 64), floats(2, 128, 64)
PAGES = floats(2, 12, 16, 128), floats(2, 12, 16, 128)
LENGTHS, TABLE = integers(64, 17, 1), jnp.arange(12, dtype=jnp.int32).reshape(3, 4)
RAGGED = (
    floats(48, 8, 128), floats(16, 16, 4, 128), integers(60, 17, 33, 0),
    jnp.arange(16, dtype=jnp.int32).reshape(4, 4), integers(0, 32, 33, 48, 48), integers(3),
)  # fmt: skip
GROUPS = floats(128, 128), floats(4, 128, 128), integers(0, 70, 50, 8)
NORM = floats(2, 4, 128), floats(128), floats(128)
FOR_GPU = floats(1, 128, 2, 32), floats(1, 128, 2, 32), floats(1, 128, 2, 32)
KEY = jnp.array([42, 7], jnp.uint32)

CALLS = {
    "flash": (flash, HEADS),
    "flash, gradients": (gradients(flash, 3), HEADS),
    "splash": (splashed, SINGLE),
    "splash, gradients": (gradients(splashed, 3), SINGLE),
    "paged": (paged, (floats(3, 8, 128), *PAGES, LENGTHS, TABLE)),
    "ragged": (ragged, RAGGED),
    "matmul": (product, (floats(128, 128), floats(128, 128))),
    "grouped": (grouped, GROUPS),
    "grouped, gradients": (gradients(grouped, 2), GROUPS),
    "transposed grouped": (transposed_grouped, (GROUPS[0], floats(128, 128), GROUPS[2])),
    "threefry": (threefry_bits, (KEY,)),
    "philox": (philox_bits, (KEY,)),
    "double": (doubled, (floats(8, 128),)),
    "GPU mha": (mha, FOR_GPU),
    "GPU mha, gradients": (gradients(mha, 3), FOR_GPU),
    "GPU mqa": (mqa, (floats(2, 32, 32), floats(2, 256, 32), floats(2, 256, 32))),
    "GPU gqa": (gqa, (floats(2, 32, 32), floats(2, 256, 2, 32), floats(2, 256, 2, 32))),
    "GPU paged": (gpu_pages, (floats(3, 8, 128), *PAGES, TABLE, LENGTHS)),
    "GPU layer norm": (layer, NORM),
    "GPU layer norm, gradients": (gradients(layer, 3), NORM),
    "GPU RMS norm": (rms, NORM),
    "GPU RMS norm, gradients": (gradients(rms, 3), NORM),
    "GPU softmax": (soft, (floats(6, 128),)),
    "example: attention": (attention.attention, (floats(1, 128, 32),) * 3),
    "example: bitonic sort": (bitonic_sort.sort, (floats(8, 16),)),
    "example: matmul": (matmul_example.matmul, (floats(128, 128), floats(128, 128))),
}

became = {}
for name, (function, args) in CALLS.items():
    REPORT.clear()
    jax.block_until_ready(jax.jit(function)(*args))
    later.do_all()
    became[name] = [row["cache"] for row in REPORT.rows()]
print(json.dumps(became))
