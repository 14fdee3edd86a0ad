"""Parts of language models, as they are usually written: what stands between their products."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.kernel import Built, Kernel, integers, normal


def in_blocks(kernel: Any, rows: int, operands: tuple[jax.Array, ...], out: Any) -> Built:
    """A kernel on blocks of so many rows of operands and results."""

    def spec(x: Any) -> pl.BlockSpec:
        return pl.BlockSpec((rows, *x.shape[1:]), lambda i: (i, *[0 for _ in x.shape[1:]]))

    f = pl.pallas_call(
        kernel,
        out,
        grid=(operands[0].shape[0] // rows,),
        in_specs=[spec(x) for x in operands],
        out_specs=jax.tree.map(spec, out),
    )
    return f, operands


def rotary(rows: int, width: int) -> Built:
    """Rotary position embeddings: each half of a row turns by the position's angles."""

    def kernel(x_ref, cos_ref, sin_ref, out_ref):
        x, cos, sin = x_ref[...], cos_ref[...], sin_ref[...]
        low, high = x[:, : width // 2], x[:, width // 2 :]
        out_ref[...] = jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=1)

    half = (rows, width // 2)
    operands = normal(rows, width), normal(*half, seed=1), normal(*half, seed=2)
    return in_blocks(kernel, 64, operands, jax.ShapeDtypeStruct((rows, width), jnp.float32))


def cross_entropy(rows: int, classes: int) -> Built:
    def kernel(logits_ref, label_ref, out_ref):
        logits = logits_ref[...]
        highest = jnp.max(logits, axis=1, keepdims=True)
        total = jnp.log(jnp.sum(jnp.exp(logits - highest), axis=1, keepdims=True)) + highest
        columns = lax.broadcasted_iota(jnp.int32, logits.shape, 1)
        wanted = jnp.sum(jnp.where(columns == label_ref[...], logits, 0), axis=1, keepdims=True)
        out_ref[...] = total - wanted

    operands = normal(rows, classes), integers(0, classes, rows, 1)
    return in_blocks(kernel, 16, operands, jax.ShapeDtypeStruct((rows, 1), jnp.float32))


def routed(tokens: int, experts: int) -> Built:
    """The two experts of each token, and their weights."""

    def kernel(logits_ref, expert_ref, weight_ref):
        logits = logits_ref[...]
        columns = lax.broadcasted_iota(jnp.int32, logits.shape, 1)
        best = jnp.max(logits, axis=1, keepdims=True)
        first = jnp.min(jnp.where(logits == best, columns, experts), axis=1, keepdims=True)
        rest = jnp.where(columns == first, -jnp.inf, logits)
        next_best = jnp.max(rest, axis=1, keepdims=True)
        second = jnp.min(jnp.where(rest == next_best, columns, experts), axis=1, keepdims=True)
        share = 1 / (1 + jnp.exp(next_best - best))
        expert_ref[...] = jnp.concatenate([first, second], axis=1)
        weight_ref[...] = jnp.concatenate([share, 1 - share], axis=1)

    out = [jax.ShapeDtypeStruct((tokens, 2), dtype) for dtype in (jnp.int32, jnp.float32)]
    return in_blocks(kernel, 64, (normal(tokens, experts),), out)


def sampled(rows: int, classes: int) -> Built:
    """The index of the largest sum of a logit and noise that was drawn before."""

    def kernel(logits_ref, noise_ref, out_ref):
        x = logits_ref[...] + noise_ref[...]
        columns = lax.broadcasted_iota(jnp.int32, x.shape, 1)
        best = jnp.max(x, axis=1, keepdims=True)
        out_ref[...] = jnp.min(jnp.where(x == best, columns, classes), axis=1, keepdims=True)

    operands = normal(rows, classes), normal(rows, classes, seed=1)
    return in_blocks(kernel, 16, operands, jax.ShapeDtypeStruct((rows, 1), jnp.int32))


def top_k(rows: int, classes: int, k: int) -> Built:
    def kernel(x_ref, value_ref, index_ref):
        x = x_ref[...]
        columns = lax.broadcasted_iota(jnp.int32, x.shape, 1)
        for n in range(k):
            best = jnp.max(x, axis=1, keepdims=True)
            where = jnp.min(jnp.where(x == best, columns, classes), axis=1, keepdims=True)
            value_ref[:, n : n + 1], index_ref[:, n : n + 1] = best, where
            x = jnp.where(columns == where, -jnp.inf, x)

    out = [jax.ShapeDtypeStruct((rows, k), dtype) for dtype in (jnp.float32, jnp.int32)]
    return in_blocks(kernel, 16, (normal(rows, classes),), out)


def row_gather(rows: int, columns: int) -> Built:
    def kernel(x_ref, index_ref, out_ref):
        out_ref[...] = jnp.take_along_axis(x_ref[...], index_ref[...], axis=1)

    out = jax.ShapeDtypeStruct((rows, columns), jnp.float32)
    operands = normal(rows, columns), integers(0, columns, rows, columns)
    return pl.pallas_call(kernel, out), operands


def quantised_matmul(size: int, dtype: Any) -> Built:
    """Narrow operands, with a scale for each row and each column."""
    exact = jnp.int32 if jnp.issubdtype(dtype, jnp.integer) else jnp.float32

    def kernel(x_ref, w_ref, rows_ref, columns_ref, out_ref):
        total = jnp.dot(x_ref[...], w_ref[...], preferred_element_type=exact)
        out_ref[...] = total.astype(jnp.float32) * rows_ref[...] * columns_ref[...]

    f = pl.pallas_call(
        kernel,
        jax.ShapeDtypeStruct((size, size), jnp.float32),
        grid=(size // 128, size // 128),
        in_specs=[
            pl.BlockSpec((128, size), lambda i, j: (i, 0)),
            pl.BlockSpec((size, 128), lambda i, j: (0, j)),
            pl.BlockSpec((128, 1), lambda i, j: (i, 0)),
            pl.BlockSpec((1, 128), lambda i, j: (0, j)),
        ],
        out_specs=pl.BlockSpec((128, 128), lambda i, j: (i, j)),
    )
    x, w = (integers(-8, 9, size, size, seed=seed).astype(dtype) for seed in (0, 1))
    return f, (x, w, normal(size, 1, seed=2), normal(1, size, seed=3))


def selective_scan(steps: int, channels: int, states: int) -> Built:
    """Mamba's: each channel has states, whose decay and inputs depend on the step."""

    def kernel(x_ref, delta_ref, a_ref, b_ref, c_ref, out_ref):
        def step(t, state):
            delta = delta_ref[t][:, None]
            state = jnp.exp(delta * a_ref[...]) * state
            state = state + delta * x_ref[t][:, None] * b_ref[t][None, :]
            out_ref[t] = jnp.sum(state * c_ref[t][None, :], axis=1)
            return state

        lax.fori_loop(0, steps, step, jnp.zeros((channels, states), jnp.float32))

    f = pl.pallas_call(kernel, jax.ShapeDtypeStruct((steps, channels), jnp.float32))
    return f, (
        normal(steps, channels),
        jax.nn.sigmoid(normal(steps, channels, seed=1)),
        -jnp.abs(normal(channels, states, seed=2)),
        normal(steps, states, seed=3),
        normal(steps, states, seed=4),
    )


def segment_sum(rows: int, segments: int) -> Built:
    """Rows added to the rows that their indices name, one after the other."""

    def kernel(which_ref, x_ref, out_ref):
        out_ref[...] = jnp.zeros_like(out_ref)

        def add(i, _):
            out_ref[which_ref[i]] += x_ref[i]
            return 0

        lax.fori_loop(0, rows, add, 0)

    f = pl.pallas_call(
        kernel,
        jax.ShapeDtypeStruct((segments, 128), jnp.float32),
        in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), pl.BlockSpec()],
    )
    return f, (integers(0, segments, rows), normal(rows, 128))


def conv1d(steps: int, channels: int, width: int) -> Built:
    """Each channel by itself, as in Mamba: a window of steps that ends at each."""

    def kernel(x_ref, weight_ref, out_ref):
        total = jnp.zeros(out_ref.shape, jnp.float32)
        for k in range(width):
            total = total + x_ref[k : k + steps, :] * weight_ref[k, :][None, :]
        out_ref[...] = total

    f = pl.pallas_call(kernel, jax.ShapeDtypeStruct((steps, channels), jnp.float32))
    return f, (normal(steps + width - 1, channels), normal(width, channels, seed=1))


KERNELS: dict[str, Kernel] = {
    "row gather 16x256": Kernel(lambda: row_gather(16, 256)),
    "top 4 of 64x512": Kernel(lambda: top_k(64, 512, 4)),
    "sampling 64x2048": Kernel(lambda: sampled(64, 2048)),
    "MoE routing 512x64": Kernel(lambda: routed(512, 64)),
    "matmul 256 i8 with scales": Kernel(lambda: quantised_matmul(256, jnp.int8)),
    "matmul 256 f8 with scales": Kernel(lambda: quantised_matmul(256, jnp.float8_e4m3fn)),
    "selective scan (Mamba) 256x64x16": Kernel(lambda: selective_scan(256, 64, 16), rtol=1e-4),
    "rotary embedding 512x128": Kernel(lambda: rotary(512, 128)),
    "cross entropy 128x2048": Kernel(lambda: cross_entropy(128, 2048)),
    "segment sum, 512 rows": Kernel(lambda: segment_sum(512, 64)),
    "conv1d 512x256, width 4": Kernel(lambda: conv1d(512, 256, 4)),
}
