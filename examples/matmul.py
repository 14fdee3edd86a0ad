"""A blocked matrix product with a fused activation, as a Pallas kernel for TPU.

    python matmul.py                a TPU, or any CPU with PALLAS_NUMPY=1
    python matmul.py --interpret    JAX's own interpreter
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from timing import measure


def matmul_kernel(x_ref, y_ref, out_ref, sums_ref, *, activation):
    @pl.when(pl.program_id(2) == 0)
    def _start():
        sums_ref[...] = jnp.zeros_like(sums_ref)

    sums_ref[...] += jnp.dot(x_ref[...], y_ref[...], preferred_element_type=jnp.float32)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _finish():
        out_ref[...] = activation(sums_ref[...]).astype(out_ref.dtype)


@functools.partial(jax.jit, static_argnames=("block", "activation", "interpret"))
def matmul(x, y, block=128, activation=jax.nn.relu, interpret=False):
    """``activation(x @ y)`` in blocks of ``block`` on every side, summed up in float32."""
    (m, depth), (_, n) = x.shape, y.shape
    return pl.pallas_call(
        functools.partial(matmul_kernel, activation=activation),
        out_shape=jax.ShapeDtypeStruct((m, n), x.dtype),
        grid=(m // block, n // block, depth // block),
        in_specs=[
            pl.BlockSpec((block, block), lambda i, j, k: (i, k)),
            pl.BlockSpec((block, block), lambda i, j, k: (k, j)),
        ],
        out_specs=pl.BlockSpec((block, block), lambda i, j, k: (i, j)),
        scratch_shapes=[pltpu.VMEM((block, block), jnp.float32)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        interpret=interpret,
    )(x, y)


def main():
    parser = argparse.ArgumentParser(description="Times relu(x @ y) of two square matrices.")
    parser.add_argument("--size", type=int, default=512, help="a multiple of 128")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--interpret", action="store_true", help="use pallas_call(interpret=True)")
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    shape = (2, options.size, options.size)
    x, y = jnp.asarray(rng.integers(-4, 5, shape), options.dtype)
    print(f"matmul {x.shape} {x.dtype}")
    out = measure(functools.partial(matmul, interpret=options.interpret), x, y)

    # Small whole numbers: every partial sum is exact, so the results are equal, not just close.
    want = np.maximum(np.asarray(x, np.float64) @ np.asarray(y, np.float64), 0)
    np.testing.assert_array_equal(np.asarray(out), np.asarray(want, out.dtype))
    print("equal to NumPy's product")


if __name__ == "__main__":
    main()
