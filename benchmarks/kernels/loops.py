"""Loops of many small steps, each of which needs the one before."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.kernel import Built, Kernel, integers, normal


def edit_distance(size: int) -> Built:
    """Between two texts, row by row, number by number."""

    def kernel(a_ref, b_ref, out_ref, row_ref):
        def number(j, _):
            row_ref[j] = j
            return 0

        def row(i, _):
            above = row_ref[0]
            row_ref[0] = i + 1

            def column(j, diagonal):
                above = row_ref[j + 1]
                changed = diagonal + jnp.where(a_ref[i] == b_ref[j], 0, 1)
                moved = jnp.minimum(above, row_ref[j]) + 1
                row_ref[j + 1] = jnp.minimum(moved, changed)
                return above

            lax.fori_loop(0, size, column, above)
            return 0

        lax.fori_loop(0, size + 1, number, 0)
        lax.fori_loop(0, size, row, 0)
        out_ref[0] = row_ref[size]

    f = pl.pallas_call(
        kernel,
        jax.ShapeDtypeStruct((1,), jnp.int32),
        scratch_shapes=[pltpu.SMEM((size + 1,), jnp.int32)],
    )
    return f, (integers(0, 4, size), integers(0, 4, size, seed=1))


def searched(size: int, wanted: int) -> Built:
    """Where numbers belong in a sorted table: a loop of unknown length for each."""

    def kernel(table_ref, wanted_ref, out_ref):
        def search(i, _):
            def halve(bounds):
                low, high = bounds
                middle = (low + high) // 2
                less = table_ref[middle] < wanted_ref[i]
                return jnp.where(less, middle + 1, low), jnp.where(less, high, middle)

            out_ref[i], _ = lax.while_loop(lambda b: b[0] < b[1], halve, (0, size))
            return 0

        lax.fori_loop(0, wanted, search, 0)

    f = pl.pallas_call(kernel, jax.ShapeDtypeStruct((wanted,), jnp.int32))
    return f, (jnp.sort(normal(size)), normal(wanted, seed=1))


def recurrence(steps: int) -> Built:
    """A linear recurrent unit: a tile of states, decayed and added to at each step."""

    def kernel(decay_ref, x_ref, out_ref):
        def step(t, state):
            state = decay_ref[t] * state + x_ref[t]
            out_ref[t] = state
            return state

        lax.fori_loop(0, steps, step, jnp.zeros((8, 128), jnp.float32))

    f = pl.pallas_call(kernel, jax.ShapeDtypeStruct((steps, 8, 128), jnp.float32))
    return f, (jax.nn.sigmoid(normal(steps, 8, 128)), normal(steps, 8, 128, seed=1))


KERNELS: dict[str, Kernel] = {
    "edit distance of 2 x 128 letters": Kernel(lambda: edit_distance(128)),
    "256 numbers searched in 4,096": Kernel(lambda: searched(4096, 256)),
    "linear recurrence, 512 steps": Kernel(lambda: recurrence(512)),
}
