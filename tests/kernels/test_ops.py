"""The kernels that JAX ships, forward and backward, give what their own references give."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.gpu import attention as gpu_attention
from jax.experimental.pallas.ops.gpu import decode_attention, layer_norm, rms_norm, softmax
from jax.experimental.pallas.ops.gpu import paged_attention as gpu_paged
from jax.experimental.pallas.ops.tpu import example_kernel, flash_attention, matmul, megablox
from jax.experimental.pallas.ops.tpu.megablox.ops import backend
from jax.experimental.pallas.ops.tpu.paged_attention import paged_attention, quantization_utils
from jax.experimental.pallas.ops.tpu.paged_attention import util as paged_util
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import kernel as ragged
from jax.experimental.pallas.ops.tpu.random import philox, threefry
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash,
)
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from tests.kernels.harness import evaluate, floats, integers

# float32 sums of up to 512 products, after exponentials and a division.
RTOL, ATOL = 2e-5, 2e-5


def check(f: Callable[..., Any], reference: Callable[..., Any], *args: Any, **near: float) -> None:
    """Asserts that the evaluator's ``f`` is near what XLA makes of ``reference``."""
    want = jax.tree.leaves(jax.jit(reference)(*args))
    near = {"rtol": RTOL, "atol": ATOL} | near
    for got in evaluate(f, *args):
        for one, other in zip(got, want, strict=True):
            assert one.dtype == other.dtype
            one, other = (np.asarray(x, np.float64) for x in (one, other))
            np.testing.assert_allclose(one, other, **near)


def backward(f: Callable[..., Any], count: int) -> Callable[..., Any]:
    """The gradients by the first ``count`` arguments; the last argument is the cotangent."""

    def gradients(*args_and_cotangent):
        *args, cotangent = args_and_cotangent
        fixed = args[count:]
        out, pull = jax.vjp(lambda *xs: f(*xs, *fixed), *args[:count])
        return pull(cotangent.astype(out.dtype))

    return gradients


def three(*shape: int) -> list[np.ndarray]:
    return [floats(seed, *shape) for seed in range(3)]


# -- attention for TPUs ---------------------------------------------------------------------


def flash(**options: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    blocks = flash_attention.BlockSizes(**{
        name: 128 for name in (
            "block_q", "block_k_major", "block_k", "block_q_major_dkv", "block_k_major_dkv",
            "block_k_dkv", "block_q_dkv", "block_k_major_dq", "block_k_dq", "block_q_dq",
        )
    }, block_b=1)  # fmt: skip

    def kernel(q, k, v, *segments):
        ids = flash_attention.SegmentIds(*segments) if segments else None
        return flash_attention.flash_attention(
            q, k, v, segment_ids=ids, block_sizes=blocks, **options
        )

    def reference(q, k, v, *segments):
        ids = flash_attention.SegmentIds(*segments) if segments else None
        return flash_attention.mha_reference_no_custom_vjp(q, k, v, None, ids, **options)

    return kernel, reference


SEGMENTS = np.repeat(np.arange(4, dtype=np.int32), 64)[None]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("segments", [(), (SEGMENTS, SEGMENTS)])
def test_flash_attention(causal, segments):
    kernel, reference = flash(causal=causal, sm_scale=0.125)
    args = [*three(1, 2, 256, 64), *segments]
    check(kernel, reference, *args)
    check(backward(kernel, 3), backward(reference, 3), *args, floats(3, 1, 2, 256, 64), atol=1e-4)


def _mask(kind: str) -> Any:
    shape = (256, 256)
    return {
        "causal": masks.CausalMask(shape),
        "local": masks.LocalMask(shape, (64, 32), 0),
        "full": masks.FullMask(shape),
    }[kind]


@pytest.mark.parametrize("kind", ["causal", "local", "full"])
@pytest.mark.parametrize("fused", [False, True])
def test_splash_attention(kind, fused):
    mask = masks.MultiHeadMask([_mask(kind), _mask("causal")])
    names = ["block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv",
             "block_kv_dkv_compute"] + ["block_q_dq", "block_kv_dq"] * (not fused)  # fmt: skip
    blocks = splash.BlockSizes(**dict.fromkeys(names, 128), use_fused_bwd_kernel=fused)
    attend = splash.make_splash_mha_single_device(mask, block_sizes=blocks)
    dense = jnp.asarray(np.stack([m[:, :] for m in mask.masks]))

    def kernel(q, k, v):
        return attend(q * 0.125, k, v)

    def reference(q, k, v):
        logits = jnp.einsum("hqd,hkd->hqk", q * 0.125, k)
        weights = jax.nn.softmax(jnp.where(dense, logits, splash.DEFAULT_MASK_VALUE))
        return jnp.einsum("hqk,hkd->hqd", weights, v)

    args = three(2, 256, 64)
    check(kernel, reference, *args)
    check(backward(kernel, 3), backward(reference, 3), *args, floats(3, 2, 256, 64), atol=1e-4)


def _paged(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pages of keys and of values, the lengths, and which pages are whose. The TPU's kernel
    rounds keys and values to bfloat16, its reference doesn't; these are bfloat16 already."""
    table = np.random.default_rng(seed).permutation(12).reshape(3, 4).astype(np.int32)
    keys, values = (
        floats(seed + i, 2, 12, 16, 128, dtype=jnp.bfloat16).astype(np.float32) for i in range(2)
    )
    return keys, values, np.array([64, 17, 1], np.int32), table


def _gathered(pages: Any, table: Any) -> Any:
    """(kv heads, pages, page size, depth) as (batch, kv heads, length, depth)."""
    heads, _, size, depth = pages.shape
    found = jnp.asarray(pages)[:, table]
    return found.transpose(1, 0, 2, 3, 4).reshape(len(table), heads, -1, depth)


@pytest.mark.parametrize("inline", [False, True])
def test_paged_attention(inline):
    keys, values, lengths, table = _paged(0)

    def kernel(q, keys, values, lengths, table):
        return paged_attention(
            q, keys, values, lengths, table, pages_per_compute_block=2, inline_seq_dim=inline
        )

    def reference(q, keys, values, lengths, table):
        return paged_util.grouped_query_attention_reference(
            q, _gathered(keys, table), _gathered(values, table), lengths
        )

    q = floats(5, 3, 8, 128) / 8
    check(kernel, reference, q, keys, values, lengths, table)


def test_paged_attention_quantised():
    keys, values, lengths, table = _paged(0)
    quantised = [quantization_utils.quantize_to_int8(x) for x in (keys, values)]

    def kernel(q, keys, values):
        return paged_attention(q, keys, values, lengths, table, pages_per_compute_block=2)

    def reference(q, keys, values):
        gathered = [
            _gathered(quantization_utils.unquantize_from_int8(x, jnp.float32), table)
            for x in (keys, values)
        ]
        return paged_util.grouped_query_attention_reference(q, *gathered, lengths)

    check(kernel, reference, floats(5, 3, 8, 128) / 8, *quantised, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"sliding_window": 20, "soft_cap": 5.0}])
def test_ragged_paged_attention(options):
    q = floats(0, 48, 8, 128)
    pages = floats(1, 16, 16, 4, 128)
    lengths = np.array([60, 17, 33, 0], np.int32)
    table = np.random.default_rng(2).permutation(16).reshape(4, 4).astype(np.int32)
    starts = np.array([0, 32, 33, 48, 48], np.int32)
    count = np.array([3], np.int32)
    # Its reference looks at the lengths in Python.
    want = ragged.ref_ragged_paged_attention(
        *map(jnp.asarray, (q, pages, lengths, table, starts, count)), sm_scale=0.1, **options
    )
    kernel = functools.partial(
        ragged.ragged_paged_attention, sm_scale=0.1, num_kv_pages_per_block=2,
        num_queries_per_block=16, **options,
    )  # fmt: skip
    for (got,) in evaluate(lambda *a: kernel(*a), q, pages, lengths, table, starts, count):
        np.testing.assert_allclose(got[:48], want, rtol=RTOL, atol=ATOL)


# -- products of matrices ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_matmul(dtype):
    x, y = floats(0, 256, 128, dtype=dtype), floats(1, 128, 256, dtype=dtype)

    def reference(x, y):
        return jnp.dot(x, y, preferred_element_type=jnp.float32).astype(x.dtype)

    blocks = {"block_shape": (128, 128), "block_k": 128}
    rtol = 8e-3 if dtype == jnp.bfloat16 else 2e-5
    check(lambda x, y: matmul.matmul(x, y, **blocks), reference, x, y, rtol=rtol, atol=1e-4)


GROUPS = np.array([0, 70, 128, 58], np.int32)


@pytest.mark.parametrize("transposed", [False, True])
def test_grouped_matmul(transposed):
    x, y = floats(0, 256, 128), floats(1, 4, 128, 256)
    if transposed:
        y = y.swapaxes(1, 2).copy()
    options = {"tiling": (128, 128, 128), "transpose_rhs": transposed}

    def kernel(x, y, sizes):
        return megablox.gmm(x, y, sizes, jnp.float32, **options)

    def reference(x, y, sizes):
        return jax.lax.ragged_dot(x, y.swapaxes(1, 2) if transposed else y, sizes)

    check(kernel, reference, x, y, GROUPS, atol=1e-4)
    cotangent = floats(2, 256, 256)
    check(backward(kernel, 2), backward(reference, 2), x, y, GROUPS, cotangent, atol=1e-4)


def test_transposed_grouped_matmul():
    x, y = floats(0, 128, 256), floats(1, 256, 128)

    def kernel(x, y, sizes):
        return backend.tgmm(x, y, sizes, jnp.float32, (128, 128, 128))

    def reference(x, y, sizes):
        group = jnp.repeat(jnp.arange(4), sizes, total_repeat_length=256)
        return jnp.einsum("kr,rg,rn->gkn", x, jax.nn.one_hot(group, 4), y)

    check(kernel, reference, x, y, GROUPS, atol=1e-4)


# -- random bits --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 128), (20, 130), (300,)])
def test_threefry(shape):
    # JAX's own bits, when they don't depend on how an array is partitioned.
    key = np.array([42, 7], np.uint32)
    with jax.threefry_partitionable(True):
        want = jax.random.bits(jax.random.wrap_key_data(key, impl="threefry2x32"), shape)
    for (got,) in evaluate(lambda k: threefry.plthreefry_random_bits(k, 32, shape), key):
        np.testing.assert_array_equal(got, want)


def test_philox():
    """The published test vector of Philox4x32-10 for zeros, and what the interpreter gives."""
    zero = np.zeros((1, 1), np.uint32)
    vector = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    for got in evaluate(lambda z: philox.philox_4x32(z, z, z, z, z, z), zero):
        assert [int(x[0, 0]) for x in got] == vector


def test_double():
    check(example_kernel.double, lambda x: x * 2, floats(0, 8, 128), rtol=0, atol=0)


# -- for GPUs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("segments", [None, SEGMENTS])
def test_gpu_attention(causal, segments):
    def kernel(q, k, v):
        return gpu_attention.mha(q, k, v, segments, sm_scale=0.25, causal=causal)

    def reference(q, k, v):
        return gpu_attention.mha_reference(q, k, v, segments, sm_scale=0.25, causal=causal)

    args = three(1, 256, 2, 32)
    check(kernel, reference, *args)
    check(backward(kernel, 3), backward(reference, 3), *args, floats(3, 1, 256, 2, 32), atol=1e-4)


@pytest.mark.parametrize("name, heads", [("mqa", ()), ("gqa", (2,))])
def test_gpu_decode_attention(name, heads):
    # Without residuals, JAX 0.8's gqa takes its result for several.
    options = {"sm_scale": 0.2, "k_splits": 4, "return_residuals": True}
    kernel = functools.partial(getattr(decode_attention, name), **options)
    reference = functools.partial(getattr(decode_attention, f"{name}_reference"), sm_scale=0.2)
    q, k, v = floats(0, 2, 32, 32), floats(1, 2, 256, *heads, 32), floats(2, 2, 256, *heads, 32)
    check(lambda *args: kernel(*args)[0], lambda *args: reference(*args), q, k, v)


def test_gpu_paged_attention():
    keys, values, lengths, table = _paged(0)
    q = floats(5, 3, 8, 128) / 8

    def kernel(q, keys, values, table, lengths):
        return gpu_paged.paged_attention(
            q, keys, values, table, lengths, pages_per_compute_block=2, k_splits=2
        )

    def reference(q, keys, values, table, lengths):
        return paged_util.grouped_query_attention_reference(
            q, _gathered(keys, table), _gathered(values, table), lengths
        )

    check(kernel, reference, q, keys, values, table, lengths)


def test_gpu_layer_norm():
    x, weight, bias = floats(0, 2, 4, 384), floats(1, 384), floats(2, 384)
    kernel, reference = layer_norm.layer_norm, layer_norm.layer_norm_reference
    check(lambda *a: kernel(*a), lambda *a: reference(*a), x, weight, bias)
    args = x, weight, bias, floats(3, 2, 4, 384)
    check(backward(kernel, 3), backward(reference, 3), *args, atol=1e-4)


def test_gpu_rms_norm():
    x, weight, bias = floats(0, 2, 4, 384), floats(1, 384), floats(2, 384)
    kernel, reference = rms_norm.rms_norm, rms_norm.rms_norm_reference
    check(lambda *a: kernel(*a), lambda *a: reference(*a), x, weight, bias)
    args = x, weight, bias, floats(3, 2, 4, 384)
    check(backward(kernel, 3), backward(reference, 3), *args, atol=1e-4)


@pytest.mark.parametrize("length", [128, 200])
def test_gpu_softmax(length):
    check(softmax.softmax, jax.nn.softmax, integers(0, 6, length, dtype=np.float32))
