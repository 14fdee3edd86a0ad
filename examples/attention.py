"""Flash attention's forward pass, as a Pallas kernel for TPU.

    python attention.py                a TPU, or any CPU with PALLAS_NUMPY=1
    python attention.py --interpret    JAX's own interpreter
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from timing import measure

MASKED = -1e30


def attention_kernel(q_ref, k_ref, v_ref, out_ref, max_ref, sum_ref, acc_ref, *, scale, causal):
    i, j = pl.program_id(1), pl.program_id(2)
    block_q, block_k = q_ref.shape[0], k_ref.shape[0]

    @pl.when(j == 0)
    def _start():
        max_ref[...] = jnp.full_like(max_ref, MASKED)
        sum_ref[...] = jnp.zeros_like(sum_ref)
        acc_ref[...] = jnp.zeros_like(acc_ref)

    # Blocks of keys that lie wholly after this block of queries add nothing.
    @pl.when(jnp.logical_or(not causal, j * block_k < (i + 1) * block_q))
    def _block():
        scores = scale * lax.dot_general(
            q_ref[...], k_ref[...], (((1,), (1,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
        if causal:
            query = i * block_q + lax.broadcasted_iota(jnp.int32, scores.shape, 0)
            key = j * block_k + lax.broadcasted_iota(jnp.int32, scores.shape, 1)
            scores = jnp.where(query >= key, scores, MASKED)
        highest = jnp.maximum(max_ref[...], jnp.max(scores, axis=1, keepdims=True))
        weights = jnp.exp(scores - highest)
        correction = jnp.exp(max_ref[...] - highest)
        sum_ref[...] = correction * sum_ref[...] + jnp.sum(weights, axis=1, keepdims=True)
        acc_ref[...] = correction * acc_ref[...] + jnp.dot(
            weights.astype(v_ref.dtype), v_ref[...], preferred_element_type=jnp.float32
        )
        max_ref[...] = highest

    @pl.when(j == pl.num_programs(2) - 1)
    def _finish():
        out_ref[...] = (acc_ref[...] / sum_ref[...]).astype(out_ref.dtype)


@functools.partial(jax.jit, static_argnames=("causal", "block_q", "block_k", "interpret"))
def attention(q, k, v, causal=True, block_q=128, block_k=128, interpret=False):
    """Softmax attention of ``(heads, length, depth)`` arrays, a block of keys at a time."""
    heads, length, depth = q.shape
    queries = pl.BlockSpec((None, block_q, depth), lambda h, i, j: (h, i, 0))
    keys = pl.BlockSpec((None, block_k, depth), lambda h, i, j: (h, j, 0))
    return pl.pallas_call(
        functools.partial(attention_kernel, scale=depth**-0.5, causal=causal),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        grid=(heads, length // block_q, k.shape[1] // block_k),
        in_specs=[queries, keys, keys],
        out_specs=queries,
        scratch_shapes=[
            pltpu.VMEM((block_q, 1), jnp.float32),
            pltpu.VMEM((block_q, 1), jnp.float32),
            pltpu.VMEM((block_q, depth), jnp.float32),
        ],
        interpret=interpret,
    )(q, k, v)


def reference(q, k, v, causal):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    scores = np.einsum("hqd,hkd->hqk", q, k) * q.shape[-1] ** -0.5
    if causal:
        scores = np.where(np.tri(*scores.shape[1:], dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("hqk,hkd->hqd", weights / weights.sum(axis=-1, keepdims=True), v)


def main():
    parser = argparse.ArgumentParser(description="Times flash attention, forward.")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--length", type=int, default=512, help="a multiple of 128")
    parser.add_argument("--depth", type=int, default=128)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--full", action="store_true", help="no causal mask")
    parser.add_argument("--interpret", action="store_true", help="use pallas_call(interpret=True)")
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    shape = (3, options.heads, options.length, options.depth)
    q, k, v = jnp.asarray(rng.standard_normal(shape), options.dtype)
    print(f"attention {q.shape} {q.dtype}{'' if options.full else ' causal'}")
    run = functools.partial(attention, causal=not options.full, interpret=options.interpret)
    out = measure(run, q, k, v)

    tolerance = 2e-5 if options.dtype == "float32" else 2e-2
    error = np.abs(np.asarray(out, np.float64) - reference(q, k, v, not options.full)).max()
    if not error < tolerance:
        raise SystemExit(f"wrong result: off by {error}")
    print(f"within {error:.1e} of NumPy's attention")


if __name__ == "__main__":
    main()
