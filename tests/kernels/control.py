"""Control flow in kernels, and kernels that are mostly control flow."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tests.kernels.harness import case, floats, integers, pallas_call, struct


@case()
def fori_loop_over_rows():
    def kernel(x, out):
        def body(i, total):
            total = total + x[pl.ds(i, 1), :]
            out[pl.ds(i, 1), :] = total
            return total

        lax.fori_loop(0, 8, body, jnp.zeros((1, 16), jnp.int32))

    f = pallas_call(kernel, struct(8, 16, dtype=np.int32))
    return f, (integers(0, 8, 16),)


@case()
def fori_loop_with_dynamic_bounds():
    def kernel(bounds, x, out):
        out[...] = jnp.zeros_like(out)

        def body(i, total):
            out[i] = x[i] + total
            return total + 1

        lax.fori_loop(bounds[0], bounds[1], body, jnp.int32(100))

    smem = pl.BlockSpec(memory_space=pltpu.SMEM)
    f = pallas_call(
        kernel, struct(8, dtype=np.int32), in_specs=[smem, smem], out_specs=smem
    )
    return f, (np.array([2, 6], np.int32), integers(0, 8))


@case()
def while_loop_newton_square_root():
    def kernel(x, out, steps):
        def unfinished(state):
            step, guess = state
            return (step < 30) & jnp.any(jnp.abs(guess * guess - x[...]) > 1e-3 * x[...])

        def improve(state):
            step, guess = state
            return step + 1, 0.5 * (guess + x[...] / guess)

        count, root = lax.while_loop(unfinished, improve, (jnp.int32(0), x[...]))
        out[...] = root
        steps[0, 0] = count

    f = pallas_call(kernel, (struct(4, 8), struct(1, 1, dtype=np.int32)))
    return f, (abs(floats(0, 4, 8)) + 1,)


@case()
def while_loop_collatz_per_cell():
    def kernel(start, out):
        def step(state):
            n, count = state
            return jnp.where(n % 2 == 0, n // 2, 3 * n + 1), count + 1

        i = pl.program_id(0)
        out[i] = lax.while_loop(lambda s: s[0] != 1, step, (start[i], jnp.int32(0)))[1]

    smem = pl.BlockSpec(memory_space=pltpu.SMEM)
    f = pallas_call(
        kernel, struct(6, dtype=np.int32), grid=(6,), in_specs=[smem], out_specs=smem
    )
    return f, (np.array([1, 2, 7, 27, 97, 6], np.int32),)


@case()
def cond_and_switch():
    def kernel(x, out):
        i = pl.program_id(0)
        value = lax.cond(i % 2 == 0, lambda v: v * 2, lambda v: -v, x[...])
        out[...] = lax.switch(
            i, [lambda v: v, lambda v: v + 100, lambda v: v[:, ::-1]], value
        )

    spec = pl.BlockSpec((1, 8), lambda i: (i, 0))
    f = pallas_call(
        kernel, struct(5, 8, dtype=np.int32), grid=(5,), in_specs=[spec], out_specs=spec
    )
    return f, (integers(0, 5, 8),)


@case()
def nested_when_and_loops():
    def kernel(x, out):
        out[...] = jnp.zeros_like(out)

        @pl.loop(0, 4)
        def _(i):
            @pl.loop(0, i)
            def _(j):
                @pl.when((i + j) % 2 == 1)
                def _():
                    out[i, :] += x[j, :] * (i + 1)

    f = pallas_call(kernel, struct(4, 8, dtype=np.int32))
    return f, (integers(0, 4, 8),)


@case()
def scan_in_a_kernel():
    def kernel(x, out, last):
        def step(carry, row):
            carry = carry * 3 + row
            return carry, carry - row

        last[0], out[...] = lax.scan(step, jnp.zeros(8, jnp.int32), x[...])

    f = pallas_call(
        kernel, (struct(6, 8, dtype=np.int32), struct(1, 8, dtype=np.int32))
    )
    return f, (integers(0, 6, 8),)


@case()
def unrolled_loop():
    def kernel(x, out):
        def body(i, carry):
            a, b = carry
            return b, a + b * x[i]

        a, b = lax.fori_loop(0, 6, body, (x[0], x[1]), unroll=True)
        out[0], out[1] = a, b

    f = pallas_call(kernel, struct(2, 4, dtype=np.int32))
    return f, (integers(0, 6, 4),)


def bitonic_sort_rows(rows, is_key_descending=False):
    """A bitonic sorting network over the lanes, fully unrolled."""
    lanes = rows.shape[1]
    lane = lax.broadcasted_iota(jnp.int32, rows.shape, 1)
    size = 2
    while size <= lanes:
        distance = size // 2
        while distance:
            is_left = (lane & distance) == 0
            ascending = ((lane & size) == 0) ^ is_key_descending
            partner = jnp.where(
                is_left,
                pltpu.roll(rows, lanes - distance, axis=1),
                pltpu.roll(rows, distance, axis=1),
            )
            keep_low = is_left == ascending
            rows = jnp.where(
                keep_low, jnp.minimum(rows, partner), jnp.maximum(rows, partner)
            )
            distance //= 2
        size *= 2
    return rows


@case()
def bitonic_sort_tile_int32():
    def kernel(x, out):
        out[...] = bitonic_sort_rows(x[...])

    f = pallas_call(kernel, struct(8, 32, dtype=np.int32))
    return f, (integers(0, 8, 32, low=-(2**31), high=2**31 - 1),)


@case()
def bitonic_sort_tile_float32_descending():
    def kernel(x, out):
        out[...] = bitonic_sort_rows(x[...], is_key_descending=True)

    spec = pl.BlockSpec((8, 16), lambda i: (i, 0))
    f = pallas_call(kernel, struct(16, 16), grid=(2,), in_specs=[spec], out_specs=spec)
    return f, (floats(0, 16, 16),)


@case()
def odd_even_argsort_with_gathers():
    """Keys and their positions, compared with neighbours fetched by take_along_axis."""

    def kernel(x, keys_out, index_out):
        width = x.shape[1]
        lane = lax.broadcasted_iota(jnp.int32, x.shape, 1)

        def step(i, state):
            keys, index = state
            is_left = (lane % 2) == (i % 2)
            partner = jnp.clip(jnp.where(is_left, lane + 1, lane - 1), 0, width - 1)
            other_keys = jnp.take_along_axis(keys, partner, axis=1)
            other_index = jnp.take_along_axis(index, partner, axis=1)
            less = (other_keys < keys) | ((other_keys == keys) & (other_index < index))
            take = jnp.where(is_left, less, ~less & (partner != lane))
            return jnp.where(take, other_keys, keys), jnp.where(take, other_index, index)

        keys, index = lax.fori_loop(0, width, step, (x[...], lane))
        keys_out[...], index_out[...] = keys, index

    f = pallas_call(
        kernel, (struct(4, 16, dtype=np.int32), struct(4, 16, dtype=np.int32))
    )
    return f, (integers(0, 4, 16),)


@case()
def game_of_life_steps():
    def kernel(x, out):
        def step(_, board):
            neighbours = sum(
                jnp.roll(jnp.roll(board, i, 0), j, 1)
                for i in (-1, 0, 1)
                for j in (-1, 0, 1)
                if (i, j) != (0, 0)
            )
            return jnp.where((neighbours == 3) | ((neighbours == 2) & (board == 1)), 1, 0)

        out[...] = lax.fori_loop(0, 4, step, x[...])

    f = pallas_call(kernel, struct(16, 16, dtype=np.int32))
    return f, (integers(0, 16, 16, low=0, high=2),)


@case()
def jitted_helper_with_static_argument():
    @jax.jit
    def halve(v):
        return v // 2

    def kernel(x, out):
        out[...] = halve(halve(x[...]) + 1) + jax.nn.relu(x[...])

    f = pallas_call(kernel, struct(8, 8, dtype=np.int32))
    return f, (integers(0, 8, 8),)
