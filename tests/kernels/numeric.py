"""Numerics: matmuls, normalisations, attention, narrow types."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tests.kernels.harness import case, floats, integers, pallas_call, struct

# exp is within 4 ulp of the oracle's, and the sums it goes into add their own rounding.
SOFTMAX = 1e-6


def matmul(x, y, out_dtype, sum_dtype, bm=8, bn=16, bk=8, epilogue=lambda sums: sums):
    """x @ y, with K blocks summed up in scratch."""

    def kernel(x, y, out, sums):
        k = pl.program_id(2)

        @pl.when(k == 0)
        def _():
            sums[...] = jnp.zeros_like(sums)

        sums[...] += jnp.dot(x[...], y[...], preferred_element_type=sum_dtype)

        @pl.when(k == pl.num_programs(2) - 1)
        def _():
            out[...] = epilogue(sums[...]).astype(out_dtype)

    (m, depth), (_, n) = x.shape, y.shape
    return pallas_call(
        kernel,
        struct(m, n, dtype=out_dtype),
        grid=(m // bm, n // bn, depth // bk),
        in_specs=[
            pl.BlockSpec((bm, bk), lambda i, j, k: (i, k)),
            pl.BlockSpec((bk, bn), lambda i, j, k: (k, j)),
        ],
        out_specs=pl.BlockSpec((bm, bn), lambda i, j, k: (i, j)),
        scratch_shapes=[pltpu.VMEM((bm, bn), sum_dtype)],
    )(x, y)


@case()
def matmul_float32():
    f = functools.partial(matmul, out_dtype=jnp.float32, sum_dtype=jnp.float32)
    return f, (integers(0, 16, 24, dtype=np.float32), integers(1, 24, 32, dtype=np.float32))


@case()
def matmul_bfloat16_relu():
    f = functools.partial(
        matmul, out_dtype=jnp.bfloat16, sum_dtype=jnp.float32,
        epilogue=lambda sums: jnp.maximum(sums, 0) * 0.3,
    )
    return f, (
        integers(0, 16, 24, dtype=ml_dtypes.bfloat16),
        integers(1, 24, 32, dtype=ml_dtypes.bfloat16),
    )


@case()
def matmul_int8():
    f = functools.partial(matmul, out_dtype=jnp.int32, sum_dtype=jnp.int32)
    return f, (
        integers(0, 16, 24, dtype=np.int8, low=-128, high=127),
        integers(1, 24, 32, dtype=np.int8, low=-128, high=127),
    )


@case()
def matmul_transposed_right():
    def kernel(x, y, out):
        out[...] = jax.lax.dot_general(
            x[...], y[...], (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
        )

    f = pallas_call(
        kernel,
        struct(16, 16),
        grid=(2, 2),
        in_specs=[
            pl.BlockSpec((8, 24), lambda i, j: (i, 0)),
            pl.BlockSpec((8, 24), lambda i, j: (j, 0)),
        ],
        out_specs=pl.BlockSpec((8, 8), lambda i, j: (i, j)),
    )
    return f, (integers(0, 16, 24, dtype=np.float32), integers(1, 16, 24, dtype=np.float32))


@case(rtol=SOFTMAX)
def softmax():
    def kernel(x, out):
        row = x[...]
        weights = jnp.exp(row - jnp.max(row, axis=-1, keepdims=True))
        out[...] = weights / jnp.sum(weights, axis=-1, keepdims=True)

    spec = pl.BlockSpec((4, 100), lambda i: (i, 0))
    f = pallas_call(kernel, struct(16, 100), grid=(4,), in_specs=[spec], out_specs=spec)
    return f, (floats(0, 16, 100) * 5,)


@case(rtol=1e-4)
def layer_norm():
    def kernel(x, gain, bias, out, mean, inverse):
        rows = x[...]
        centre = jnp.mean(rows, axis=1, keepdims=True)
        variance = jnp.mean(jnp.square(rows - centre), axis=1, keepdims=True)
        scale = jax.lax.rsqrt(variance + 1e-6)
        out[...] = (rows - centre) * scale * gain[...] + bias[...]
        mean[...], inverse[...] = centre, scale

    rows = pl.BlockSpec((4, 64), lambda i: (i, 0))
    vector = pl.BlockSpec((1, 64), lambda i: (0, 0))
    column = pl.BlockSpec((4, 1), lambda i: (i, 0))
    f = pallas_call(
        kernel,
        (struct(12, 64), struct(12, 1), struct(12, 1)),
        grid=(3,),
        in_specs=[rows, vector, vector],
        out_specs=(rows, column, column),
    )
    # A mean well away from 0, so that a relative tolerance means something.
    return f, (floats(0, 12, 64) + 4, abs(floats(1, 1, 64)), floats(2, 1, 64) + 9)


@case(rtol=0.01)
def rms_norm_bfloat16():
    def kernel(x, gain, out):
        rows = x[...].astype(jnp.float32)
        scale = jax.lax.rsqrt(jnp.mean(rows * rows, axis=-1, keepdims=True) + 1e-5)
        out[...] = (rows * scale).astype(out.dtype) * gain[...]

    rows = pl.BlockSpec((8, 32), lambda i: (i, 0))
    f = pallas_call(
        kernel,
        struct(16, 32, dtype=jnp.bfloat16),
        grid=(2,),
        in_specs=[rows, pl.BlockSpec((1, 32), lambda i: (0, 0))],
        out_specs=rows,
    )
    return f, (floats(0, 16, 32, dtype=ml_dtypes.bfloat16),
               floats(1, 1, 32, dtype=ml_dtypes.bfloat16))


def attention(q, k, v, causal, block_q=8, block_k=16):
    """Flash attention: one pass over the keys with a running maximum and sum."""
    heads, length, depth = q.shape
    keys = k.shape[1]

    def kernel(q, k, v, out, maximum, total, acc):
        i, j = pl.program_id(1), pl.program_id(2)

        @pl.when(j == 0)
        def _():
            maximum[...] = jnp.full_like(maximum, -jnp.inf)
            total[...] = jnp.zeros_like(total)
            acc[...] = jnp.zeros_like(acc)

        @pl.when((not causal) | (j * block_k < (i + 1) * block_q))
        def _():
            scores = jax.lax.dot_general(
                q[...], k[...], (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
            ) / np.sqrt(depth).astype(np.float32)
            if causal:
                row = i * block_q + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
                column = j * block_k + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
                scores = jnp.where(row >= column, scores, -1e30)
            new = jnp.maximum(maximum[...], jnp.max(scores, axis=1, keepdims=True))
            weights = jnp.exp(scores - new)
            old = jnp.exp(maximum[...] - new)
            total[...] = total[...] * old + jnp.sum(weights, axis=1, keepdims=True)
            acc[...] = acc[...] * old + jnp.dot(weights.astype(v.dtype), v[...],
                                                preferred_element_type=jnp.float32)
            maximum[...] = new

        @pl.when(j == pl.num_programs(2) - 1)
        def _():
            out[...] = (acc[...] / total[...]).astype(out.dtype)

    return pallas_call(
        kernel,
        struct(heads, length, depth, dtype=q.dtype),
        grid=(heads, length // block_q, keys // block_k),
        in_specs=[
            pl.BlockSpec((None, block_q, depth), lambda h, i, j: (h, i, 0)),
            pl.BlockSpec((None, block_k, depth), lambda h, i, j: (h, j, 0)),
            pl.BlockSpec((None, block_k, depth), lambda h, i, j: (h, j, 0)),
        ],
        out_specs=pl.BlockSpec((None, block_q, depth), lambda h, i, j: (h, i, 0)),
        scratch_shapes=[
            pltpu.VMEM((block_q, 1), jnp.float32),
            pltpu.VMEM((block_q, 1), jnp.float32),
            pltpu.VMEM((block_q, depth), jnp.float32),
        ],
    )(q, k, v)


@case(rtol=1e-5)
def attention_float32():
    f = functools.partial(attention, causal=False)
    # Positive values: no cancellation, so the tolerance is one of rounding only.
    return f, (floats(0, 2, 16, 8), floats(1, 2, 32, 8), abs(floats(2, 2, 32, 8)))


@case(rtol=0.01)
def attention_bfloat16_causal():
    f = functools.partial(attention, causal=True)
    dtype = ml_dtypes.bfloat16
    return f, (floats(0, 2, 32, 8, dtype=dtype), floats(1, 2, 32, 8, dtype=dtype),
               abs(floats(2, 2, 32, 8, dtype=dtype)))


@case()
def int8_quantise_and_back():
    def kernel(x, q, back):
        scaled = jnp.clip(jnp.round(x[...] * 32), -128, 127)
        q[...] = scaled.astype(jnp.int8)
        back[...] = q[...].astype(jnp.float32) / 32

    f = pallas_call(kernel, (struct(8, 16, dtype=jnp.int8), struct(8, 16)))
    return f, (floats(0, 8, 16) * 3,)


@case()
def bfloat16_arithmetic_rounds_each_step():
    def kernel(x, y, out):
        out[...] = (x[...] * y[...] + x[...]) - y[...] / 3

    f = pallas_call(kernel, struct(16, 8, dtype=jnp.bfloat16))
    dtype = ml_dtypes.bfloat16
    return f, (floats(0, 16, 8, dtype=dtype), floats(1, 16, 8, dtype=dtype))


@case()
def integer_hash():
    def kernel(x, out):
        h = x[...].astype(jnp.uint32)
        h = (h ^ (h >> 16)) * jnp.uint32(0x7FEB352D)
        h = (h ^ (h >> 15)) * jnp.uint32(0x846CA68B)
        out[...] = jax.lax.bitcast_convert_type(h ^ (h >> 16), jnp.int32)

    f = pallas_call(kernel, struct(64, dtype=jnp.int32))
    return f, (np.arange(-32, 32, dtype=np.int32) * 123457,)


@case()
def cumulative_sum_with_carry():
    def kernel(x, out, carry):
        @pl.when(pl.program_id(0) == 0)
        def _():
            carry[...] = jnp.zeros_like(carry)

        sums = jnp.cumsum(x[...], axis=1) + carry[...]
        out[...] = sums
        carry[...] = sums[:, -1:]

    spec = pl.BlockSpec((4, 16), lambda i: (0, i))
    f = pallas_call(
        kernel, struct(4, 64, dtype=jnp.int32), grid=(4,), in_specs=[spec], out_specs=spec,
        scratch_shapes=[pltpu.VMEM((4, 1), jnp.int32)],
    )
    return f, (integers(0, 4, 64),)


@case()
def histogram_by_one_hot():
    def kernel(x, out):
        @pl.when(pl.program_id(0) == 0)
        def _():
            out[...] = jnp.zeros_like(out)

        bins = jax.lax.broadcasted_iota(jnp.int32, (x.shape[0], 16), 1)
        out[...] += jnp.sum((x[...] == bins).astype(jnp.int32), axis=0, keepdims=True)

    f = pallas_call(
        kernel, struct(1, 16, dtype=jnp.int32), grid=(4,),
        in_specs=[pl.BlockSpec((32, 1), lambda i: (i, 0))],
        out_specs=pl.BlockSpec((1, 16), lambda i: (0, 0)),
    )
    return f, (integers(0, 128, 1, low=0, high=16),)


@case()
def argmax_rows():
    def kernel(x, index, value):
        index[...] = jnp.argmax(x[...], axis=1, keepdims=True).astype(jnp.int32)
        value[...] = jnp.max(x[...], axis=1, keepdims=True)

    rows = pl.BlockSpec((4, 33), lambda i: (i, 0))
    column = pl.BlockSpec((4, 1), lambda i: (i, 0))
    f = pallas_call(
        kernel, (struct(8, 1, dtype=jnp.int32), struct(8, 1)), grid=(2,),
        in_specs=[rows], out_specs=(column, column),
    )
    return f, (integers(0, 8, 33, dtype=np.float32),)
