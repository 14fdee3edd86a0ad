"""Sorts the rows of an array with a bitonic network, written as a Pallas kernel for TPU.

    python bitonic_sort_benchmark.py                a TPU, or any CPU with PALLAS_NUMPY=1
    python bitonic_sort_benchmark.py --interpret    JAX's own interpreter
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


def compare_exchange(keys, index, lane, size, distance, descending):
    """One step: each lane against the lane ``distance`` away, within runs of ``size`` lanes."""
    lanes = keys.shape[1]
    is_left = (lane & distance) == 0

    def partner(x):
        ahead = pltpu.roll(x, lanes - distance, axis=1)
        behind = pltpu.roll(x, distance, axis=1)
        return jnp.where(is_left, ahead, behind)

    other_keys, other_index = partner(keys), partner(index)
    # Equal keys keep their order: the position breaks the tie.
    first = (keys > other_keys) if descending else (keys < other_keys)
    first = first | ((keys == other_keys) & (index < other_index))
    runs_up = (lane & size) == 0
    stay = first == (is_left == runs_up)
    return jnp.where(stay, keys, other_keys), jnp.where(stay, index, other_index)


def sort_kernel(x_ref, keys_ref, index_ref, *, descending):
    keys = x_ref[...]
    lanes = keys.shape[1]
    lane = lax.broadcasted_iota(jnp.int32, keys.shape, 1)
    index = lane
    size = 2
    while size <= lanes:
        distance = size // 2
        while distance:
            keys, index = compare_exchange(keys, index, lane, size, distance, descending)
            distance //= 2
        size *= 2
    keys_ref[...] = keys
    index_ref[...] = index


@functools.partial(jax.jit, static_argnames=("descending", "block_rows", "interpret"))
def sort(x, descending=False, block_rows=8, interpret=False):
    """Sorted rows of ``x`` and the positions they came from. Lanes must be a power of two."""
    rows, lanes = x.shape
    if lanes & (lanes - 1):
        raise ValueError(f"the number of lanes must be a power of two, not {lanes}")
    block = pl.BlockSpec((block_rows, lanes), lambda i: (i, 0))
    return pl.pallas_call(
        functools.partial(sort_kernel, descending=descending),
        out_shape=(
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            jax.ShapeDtypeStruct(x.shape, jnp.int32),
        ),
        grid=(pl.cdiv(rows, block_rows),),
        in_specs=[block],
        out_specs=(block, block),
        interpret=interpret,
    )(x)


def main():
    parser = argparse.ArgumentParser(description="Times a bitonic sort of each row.")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--lanes", type=int, default=128)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "int32"))
    parser.add_argument("--descending", action="store_true")
    parser.add_argument("--interpret", action="store_true", help="use pallas_call(interpret=True)")
    options = parser.parse_args()

    values = np.random.default_rng(0).integers(-1000, 1000, (options.rows, options.lanes))
    x = jnp.asarray(values, options.dtype)
    run = functools.partial(sort, descending=options.descending, interpret=options.interpret)
    print(f"sort {x.shape} {x.dtype}{' descending' if options.descending else ''}")
    keys, index = measure(run, x)

    host = np.asarray(x, np.float32)
    order = np.argsort(-host if options.descending else host, axis=1, kind="stable")
    np.testing.assert_array_equal(index, order)
    np.testing.assert_array_equal(
        np.asarray(keys, np.float32), np.take_along_axis(host, order, axis=1)
    )
    print("equal to NumPy's stable sort")


if __name__ == "__main__":
    main()
